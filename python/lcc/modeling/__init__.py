"""What is done to a transformers model: K and V, attention, prefill, generation, checks and fingerprints."""
