"""Quality by the number of evaluations, sampler by sampler."""
