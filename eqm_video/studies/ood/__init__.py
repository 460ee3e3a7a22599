"""The study `ood`: out-of-distribution scores."""
