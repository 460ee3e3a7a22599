"""`eqm-video curvature`."""
