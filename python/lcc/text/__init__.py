"""Text on its way to a model: the chat around it, its tokens, and queries that go with any text."""
