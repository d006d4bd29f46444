"""Compile a text, save the memory, load it, and ask it.

Run it with ``python docs/examples/quickstart.py``.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import lcc
from lcc.embedded_model import load_embedded

TEXT = Path(__file__).with_name("village.txt").read_text("utf-8")
# Fewer steps and questions than by default: a short text, and seconds instead of minutes.
QUICK = {"steps": 40, "batch": 16, "evaluate_every": 20, "self_study_questions": 120, "general_queries": 40}
QUESTIONS = ["Where does Mara live?", "What is the job of Hugo?", "What does Ines play?", "How old is Hugo?"]

# Any accepted model and its tokenizer, such as those of AutoModelForCausalLM.from_pretrained.
model, tokenizer = load_embedded()
memory = lcc.compile(model, tokenizer, TEXT, ratio=4, progress=False, **QUICK)

with TemporaryDirectory() as folder:
    path = Path(folder) / "village.lcc.safetensors"
    memory.save(path)
    memory = lcc.Memory.load(path)

# From here on nothing reads the text.
print(f"{memory.source_tokens} tokens of text became {memory.buffer_tokens} buffer tokens")
for question, answer in zip(QUESTIONS, lcc.ask(model, tokenizer, memory, QUESTIONS), strict=True):
    print(f"{question} {answer}")

certificate = memory.certificate
print(f"held-out KL: {certificate['held_out']['kl']['memory']:.3f} nats a token with the memory,", end=" ")
print(f"{certificate['held_out']['kl']['no_text']:.3f} without any text")
