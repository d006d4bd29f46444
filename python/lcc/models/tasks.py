"""What the embedded model is taught to do with a text: answer, repeat, continue, and ask."""

from __future__ import annotations

SYSTEM_PROMPT = "You are a helpful assistant."
REPEAT = "Please repeat the context."
ASK = "Ask a question about the text."
CONTINUE = "Continue the text after: {snippet}"
SEPARATOR = "\n\n"
