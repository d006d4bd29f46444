"""Answers to many at once, over HTTP: by this package's own server, by vLLM, or by llama.cpp."""
