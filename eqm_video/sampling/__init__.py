"""Sampling: labels and seeds become frames. This package imports nothing; take what is needed from its modules."""
