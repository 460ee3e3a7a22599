"""`python -m eqm_video plane`."""
