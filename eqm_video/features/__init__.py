"""Networks that turn clips into features, for the metrics; a file for each kind."""
