"""`python -m eqm_video tasks`."""
