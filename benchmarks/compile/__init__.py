"""What compiling takes: a step's speed and memory, quality against steps, plans, and kills."""
