"""What knows no model: files, values, text from outside, hashes, progress and processes."""
