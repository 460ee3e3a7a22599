"""`python -m eqm_video ablate`."""
