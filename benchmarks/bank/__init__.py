"""Benchmarks of memory banks."""
