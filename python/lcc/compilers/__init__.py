"""Ways to make a memory, one a file."""
