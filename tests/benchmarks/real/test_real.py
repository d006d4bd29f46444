"""A real instruct model, where there is one: ``LCC_REAL_MODEL=DIR pytest -m real`` (see ``benchmarks.real.fetch``)."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from statistics import fmean

import pytest

import lcc
from benchmarks import report
from benchmarks.common.results_file import load_rows
from benchmarks.real import __main__ as real
from benchmarks.real import update
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
def instruct():
    return load_model(MODEL)


@pytest.mark.real
@pytest.mark.skipif(MODEL is None, reason="LCC_REAL_MODEL names no model")
def test_three_steps_of_a_story(instruct):
    story = load_story("lighthouse")
    memory = lcc.compile(*instruct, story.text, **SMALL)
    memory.verify(*instruct)
    assert memory.asking["kept"] == len(memory.questions) >= 20
    assert memory.asking["asker"] in ASKERS
    assert memory.curve[-1]["held_out_kl"] < 2
    (answer,) = lcc.ask(*instruct, memory, ["Who came to Skerry Hoe?"])
    assert answer


@pytest.fixture(scope="module")
def story():
    """A story that the embedded model can read, with questions on every level."""
    doc = document(random.Random(3), 3, 4)
    levels = ("easy", "medium", "hard", "unanswerable")
    questions = [
        {"question": q.text, "level": level, "answers": [] if level == "unanswerable" else [q.answer]}
        for level, q in zip(levels * 3, doc.questions(), strict=False)
    ]
    return Story("doc", "fiction", doc.text, tuple(questions))


def test_an_exam(embedded, story):
    """The full text agrees with itself; the first choices of nothing are others."""
    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    full = Reader.of_text(model, chat, story.text)
    exam = Exam.of(story, full)
    row = exam.measure(full)
    assert row["right"] >= 0.8
    assert row["kl"] == pytest.approx(0, abs=1e-5)
    assert row["same"] == 1
    nothing = exam.measure(Reader.of_text(model, chat, ""))
    assert nothing["kl"] > 0.5
    assert nothing["same"] < 0.9
    assert nothing["right"] < row["right"]
    assert fmean(nothing["kl_by_question"]) == pytest.approx(nothing["kl"], abs=1e-4)


def test_the_table_from_first_call_to_report(story, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real, "load_story", lambda name: replace(story, name=name))
    out, folder = tmp_path / "rows.json", tmp_path / "work"
    small = ["steps=2", "batch=2", "self_study_questions=6", "general_queries=4", "max_response_tokens=8"]
    methods = ["attention_matching", "full_text", "no_text", "first_tokens", "lcc", "direct_kv"]

    def call(*stories):
        real.main([
            "--stories", *stories, "--methods", *methods, "--ratios", "4", "--folder", str(folder), "--out", str(out),
            "--set", *small, "--own", "direct_kv.learning_rate=0.01",
        ])  # fmt: skip
        return load_rows(out)

    first = call("one")
    assert [row["method"] for row in first] == methods
    by_method = {row["method"]: row for row in first}
    assert by_method["direct_kv"]["settings"]["learning_rate"] == 0.01
    assert by_method["lcc"]["bytes"] == by_method["first_tokens"]["bytes"] == by_method["direct_kv"]["bytes"]
    for method in ("lcc", "attention_matching"):
        assert by_method["full_text"]["kl"] < by_method[method]["kl"]
    rows = call("one", "two")
    assert rows[: len(first)] == first
    capsys.readouterr()
    report.main([str(out), "-o", str(tmp_path / "report")])
    table = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "4x, one, two" in table
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if line.startswith("| ")}
    for method in methods:
        assert (" to " in lines[method]) == (method != "lcc")
    assert (tmp_path / "report" / "report.png").stat().st_size > 1000


def test_two_stories_one_after_the_other(story, tmp_path, monkeypatch, capsys):
    other = document(random.Random(5), 2, 4)
    questions = [
        {"question": q.text, "level": level, "answers": [q.answer]}
        for level, q in zip(("easy", "medium", "hard", "unanswerable"), other.questions(), strict=False)
    ]
    stories = {"one": story, "two": Story("two", "fiction", other.text, tuple(questions))}
    monkeypatch.setattr(update, "load_story", lambda name: replace(stories[name], name=name))
    out = tmp_path / "rows.json"
    small = ["steps=2", "batch=2", "self_study_questions=6", "general_queries=4", "max_response_tokens=8"]

    def call(*ways):
        update.main([
            "--stories", "one", "two", "--ratio", "4", "--folder", str(tmp_path), "--out", str(out), "--set", *small,
            "--ways", *ways,
        ])  # fmt: skip
        return {(row["way"], row["story"]): row for row in load_rows(out)}

    some = call("full_text", "growing")
    rows = call(*update.WAYS)
    assert rows.keys() == {(way, name) for way in update.WAYS for name in ("one", "two")}
    assert rows["growing", "one"] == some["growing", "one"]
    assert rows["full_text", "two"]["kl"] == pytest.approx(0, abs=1e-5)
    tokens = {way: rows[way, "one"]["tokens"] for way in update.WAYS}
    assert tokens["first"] < tokens["growing"]
    assert max(tokens[way] for way in ("at once", "growing", "constant")) - tokens["at once"] <= 1
    assert (tmp_path / "first-wide.lcc.safetensors").exists()
    assert capsys.readouterr().out.count("| growing |") == 2
