"""Sampling: from labels and seeds to frames."""
