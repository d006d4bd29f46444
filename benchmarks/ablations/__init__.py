"""What each choice of LCC is worth, one setting changed at a time."""
