"""Text to tokens and back, whatever the text."""
