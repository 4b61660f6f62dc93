"""The repository itself: its structure, wheel and documents."""
