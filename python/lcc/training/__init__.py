"""The loop that optimises what becomes a memory."""
