"""What models are told: the embedded model was trained on these very words."""

from __future__ import annotations

SYSTEM_PROMPT = "You are a helpful assistant."
SEPARATOR = "\n\n"

REPEAT_REQUEST = "Please repeat the context."
REPEAT_FROM = 'Please repeat the context from "{}" on.'
TELL_ALL = "Write down all that the text says, word for word."
ASK_PLAIN = "Ask a question about the text."
ASK_HARD = "Ask a hard question about the text."
ASK_FOLLOW_UP = "Ask a question about that."

# Worked examples, for models that were not trained to ask.
ASK_ONE = "Write a question that this text answers."
ASK_NEXT = "Write the next question about this text."
EXAMPLES = """\
Text: Mr. Alder, a baker from Brill, has sold rye bread on Friday mornings for thirty years. His daughter \
Ina drives the van.
Q: Who drives the van?
A: Mr. Alder's daughter Ina drives it.

Text: The bridge was closed on 3 May after a barge struck its second pillar. Repairs cost 40,000 euros and took nine \
weeks.
Q: Why was the bridge closed?
A: A barge had struck its second pillar."""
PLAIN_OPENINGS = (
    "Who", "What", "Where", "When", "Why", "How", "Which", "How many", "What did", "What is", "Who is", "How did",
    "What was", "Where did", "Who did", "What does", "How old", "At what", "What kind of", "In which", "How much",
    "Whose", "On which", "How long", "Is it true that", "What is the name of", "To whom", "How is", "Did", "Which of",
    "From where", "What happened when", "With what", "Can you tell me",
)  # fmt: skip
HARD_OPENINGS = (
    "Why did", "How did", "What happened after", "What is the reason", "What do", "How many", "Which of", "Who else",
    "What changed", "What is the difference between", "In what order", "What does it mean that", "What made",
    "How is", "What can be said about", "Which came first", "How would you describe", "What follows from",
    "In total, how many", "How much more", "What would have happened if", "Whom does",
)  # fmt: skip
FOLLOW_UP_OPENINGS = ("And who", "Why", "And where", "What did", "How", "And when", "What else", "And then what")
