"""What models are told: the embedded model was trained on these very words."""

from __future__ import annotations

SYSTEM_PROMPT = "You are a helpful assistant."
SEPARATOR = "\n\n"

REPEAT_REQUEST = "Please repeat the context."
ASK_PLAIN = "Ask a question about the text."
ASK_HARD = "Ask a hard question about the text."
ASK_FOLLOW_UP = "Ask a question about that."
