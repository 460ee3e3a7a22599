"""`python -m eqm_video compare`."""
