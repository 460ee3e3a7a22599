"""`eqm-video compose`."""
