"""`python -m eqm_video compose`."""
