"""`eqm-video partial`."""
