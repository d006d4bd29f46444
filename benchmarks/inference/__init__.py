"""What reading a memory takes and gives."""
