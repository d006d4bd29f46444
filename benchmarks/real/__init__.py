"""A real instruct model, SmolLM2-135M-Instruct: how it is fetched, and what is measured with it."""
