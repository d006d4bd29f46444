"""Several turns with one memory: a later question refers to an earlier one.

Run it with ``python docs/examples/chat.py``.
"""

from pathlib import Path

import lcc
from lcc.embedded_model import load_embedded
from lcc.inference.conversation import Conversation

TEXT = Path(__file__).with_name("village.txt").read_text("utf-8")
QUICK = {"steps": 40, "batch": 16, "evaluate_every": 20, "self_study_questions": 120, "general_queries": 40}

model, tokenizer = load_embedded()
memory = lcc.compile(model, tokenizer, TEXT, ratio=4, progress=False, certify=False, **QUICK)

conversation = Conversation(model, tokenizer, memory)
for message in ("What pet does Hugo have?", "Where does he live?", "How old is he?"):
    print(f"you:    {message}")
    print(f"memory: {conversation.say(message)}")
