"""`eqm-video descent`."""
