"""What a bank of memories does."""
