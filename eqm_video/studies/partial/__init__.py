"""`python -m eqm_video partial`."""
