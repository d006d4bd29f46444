"""Benchmarks of the kernels against what a user has today."""
