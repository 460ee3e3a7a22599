"""The study `ablate`: recipes that differ in one choice each."""
