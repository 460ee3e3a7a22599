"""`eqm-video compare`."""
