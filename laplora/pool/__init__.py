"""Experts together: a logarithmic opinion pool, its weights, and which answer is worth its passes."""
