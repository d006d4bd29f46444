"""What a bank of memories costs, and what its parts are worth."""
