"""The repository: structure, wheel and documents."""
