"""What a compiler learns from: questions about a text, and the answers of the model that reads it."""
