"""The memory bank: a folder of memories of one model, found again by what they know."""
