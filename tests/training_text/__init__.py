"""The text of a training: data of every kind, blocks, words and masks."""
