"""``lcc compile`` and ``lcc ask`` with the embedded model, as a user types them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.common.results_file import Row
from lcc.synthetic.exam import score
from lcc.synthetic.people import document
from lcc.synthetic.seeds import DEMO

from .case import Case, Scale

RATIO = 8


def cases(scale: Scale) -> list[Case]:
    """One unseen document, its questions asked of the memory."""
    return [Case("compile and ask", partial(_compile_and_ask, scale))]


def _compile_and_ask(scale: Scale) -> Row:
    subject = document(random.Random(DEMO), people=2 if scale.tiny else 5, attributes=3 if scale.tiny else 7)
    questions = list(subject.questions())[: 2 if scale.tiny else 20]
    less = ["--steps", "2", "--set", "self_study_questions=8", "--set", "general_queries=4"] if scale.tiny else []
    with tempfile.TemporaryDirectory() as folder:
        text, memory = Path(folder, "text.txt"), Path(folder, "memory.safetensors")
        text.write_text(subject.text, "utf-8")
        compiled, _ = _run("compile", str(text), "-o", str(memory), "--ratio", str(RATIO), "--no-certify", *less)
        asked, said = _run("ask", str(memory), *(question.text for question in questions), "--json")
    right = score([row["answer"] for row in json.loads(said)["answers"]], questions)
    return {"compile_seconds": compiled, "ask_seconds": asked, "questions": len(questions), "right": right}


def _run(*words: str) -> tuple[float, str]:
    """Seconds of a command from its start to its end, and what it prints.

    Raises:
        RuntimeError: it fails.
    """
    began = time.perf_counter()
    ran = subprocess.run([sys.executable, "-m", "lcc", *words], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"lcc {words[0]} ended with {ran.returncode}: {ran.stderr[-400:]}")
    return time.perf_counter() - began, ran.stdout
