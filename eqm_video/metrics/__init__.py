"""Measures of samples against data; tensors in, numbers out."""
