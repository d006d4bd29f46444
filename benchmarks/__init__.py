"""Scripts behind every figure in the documents."""
