"""Tiny random models of many families, and which of them are accepted."""
