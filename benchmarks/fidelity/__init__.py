"""What LCC and other methods keep of unseen documents, at the same bytes."""
