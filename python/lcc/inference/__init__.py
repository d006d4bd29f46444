"""Reading memories: questions, conversations, and the frozen model behind a text or a memory."""
