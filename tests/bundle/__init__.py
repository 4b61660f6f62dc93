"""What is believed of a bundle, and what a hostile one can do."""
