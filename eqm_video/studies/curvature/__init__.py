"""`python -m eqm_video curvature`."""
