"""What serving costs, and whether it holds: many requests over many memories."""
