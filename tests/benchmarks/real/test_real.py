"""A real instruct model, where there is one: ``LCC_REAL_MODEL=DIR pytest -m real`` (see ``benchmarks.real.fetch``)."""

from __future__ import annotations

import os

import pytest

import lcc
from benchmarks.real.measures import Exam
from lcc.cli.loading import load_model
from lcc.data.askers import ASKERS
from lcc.evaluation.stories import Story, load_story
from lcc.inference.reader import Reader
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat

MODEL = os.environ.get("LCC_REAL_MODEL")
SMALL = {
    "ratio": 8, "steps": 3, "batch": 4, "self_study_questions": 24, "general_queries": 8, "max_response_tokens": 16,
    "certify": False, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def real():
    return load_model(MODEL)


@pytest.mark.real
@pytest.mark.skipif(MODEL is None, reason="LCC_REAL_MODEL names no model")
def test_three_steps_of_a_story(real):
    story = load_story("lighthouse")
    memory = lcc.compile(*real, story.text, **SMALL)
    memory.verify(*real)
    assert memory.asking["kept"] == len(memory.questions) >= 20
    assert memory.asking["asker"] in ASKERS
    assert memory.curve[-1]["held_out_kl"] < 2
    (answer,) = lcc.ask(*real, memory, ["Who came to Skerry Hoe?"])
    assert answer


def test_an_exam(embedded):
    """The full text agrees with itself; the first choices of nothing are others."""
    import random

    model, tokenizer = embedded
    doc = document(random.Random(3), 3, 4)
    levels = ("easy", "medium", "hard", "unanswerable")
    questions = [
        {"question": q.text, "level": level, "answers": [] if level == "unanswerable" else [q.answer]}
        for level, q in zip(levels * 3, doc.questions(), strict=False)
    ]
    chat = ChatFormat.of(tokenizer)
    full = Reader.of_text(model, chat, doc.text)
    exam = Exam(Story("doc", "fiction", doc.text, tuple(questions)), full)
    row = exam.measure(full)
    assert row["right"] >= 0.8
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["same"] == 1
    nothing = exam.measure(Reader.of_text(model, chat, ""))
    assert nothing["kl"] > 0.5
    assert nothing["same"] < 0.9
    assert nothing["right"] < row["right"]
