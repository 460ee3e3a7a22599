"""The study `ablate`: recipes that differ in a single choice."""
