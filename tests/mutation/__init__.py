"""Mutants: small faults put into the kernels on purpose, each of which the nearest tests must notice without a GPU."""
