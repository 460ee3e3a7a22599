"""The study `sweep`: quality over number of steps, step size and sampler."""
