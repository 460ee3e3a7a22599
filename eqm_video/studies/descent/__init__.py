"""`python -m eqm_video descent`."""
