"""``lcc bank train-router``, ``ask``, ``chat`` and ``eval``, and what they show."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import lcc
from lcc.bank.evaluation import BankEvaluation, parse_questions
from lcc.cli.app import app
from lcc.evaluation.metrics import exact_match
from tests.lcc.bank.asked_bank import fill

GENERAL = ["What is the capital of France?", "Say: moon stone."]


@pytest.fixture(scope="module")
def corpus_and_bank(_embedded, tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluated") / "bank"
    with lcc.MemoryBank(place, create=True) as bank:
        corpus = fill(bank, *_embedded)
        bank.train_router(*_embedded)
    return corpus, place


def rows_of(corpus):
    about = [
        {"question": question.text, "answer": question.answer, "document": f"doc{number}"}
        for number in range(len(corpus.documents))
        for question in corpus.questions(number)
    ]
    return [*about, *({"question": question.text} for question in corpus.unanswerable(slice(0, 1))[:4])]


def run(*arguments, code=0, typed=None):
    result = CliRunner().invoke(app, ["bank", *map(str, arguments)], input=typed)
    assert result.exit_code == code, result.output + result.stderr
    return result.stdout


def test_both_sides(corpus_and_bank, embedded):
    corpus, place = corpus_and_bank
    with lcc.MemoryBank(place) as bank:
        asked = parse_questions(rows_of(corpus), [document.key for document in bank.documents()])
        figures = BankEvaluation(bank.open(*embedded), exact_match, 8).run(asked, GENERAL)
    assert figures["documents"] == 3
    assert figures["questions"] == len(asked) - 4
    assert figures["found"][1] <= figures["found"][3] == 1.0
    assert 0.7 < figures["answers"]["oracle"] <= 1
    assert figures["answers"]["text"] > 0.9
    assert figures["of_oracle"]["oracle"] == 1.0
    assert figures["unrelated"]["gated"] == {"refused": 1.0, "unchanged": 1.0}
    assert figures["unrelated"]["routed"]["refused"] < 1
    assert figures["unanswerable"]["count"] == 4


def test_rows_that_cannot_be_asked():
    for row, cause in (
        ({"answer": "x"}, "row 1 has no question"),
        ({"question": "Who?", "document": "other", "answer": "x"}, "'other', which the bank does not hold"),
        ({"question": "Who?", "document": "doc0"}, "has no answer"),
        ({"question": "Who?"}, "no question is about a document"),
        ({"question": "Who?", "document": ["doc0"], "answer": "x"}, "which the bank does not hold"),
        ({"question": "Who?", "document": "doc0", "answer": 7}, "an answer that is no text"),
        ({"question": "Who?", "document": "doc0", "answer": {"a": "x"}}, "an answer that is no text"),
        ({"question": "Who?", "document": "doc0", "answer": ["x", ""]}, "or empty"),
    ):
        with pytest.raises(lcc.InputError, match=cause):
            parse_questions([row], ["doc0"])


def test_commands(corpus_and_bank, tmp_path):
    corpus, place = corpus_and_bank
    question = corpus.questions(0)[0].text
    shown = run("ask", question, GENERAL[0], "--bank", place)
    assert "(memory: doc0; doc0 is preferred by the router; its " in shown.replace("\n", " ")
    assert "Paris" in shown
    told = json.loads(run("ask", question, "--bank", place, "--json"))["answers"][0]
    assert (told["source"], told["keys"]) == ("memory", ["doc0"])
    assert {one["key"] for one in told["considered"]} == {"doc0", "doc1", "doc2"}
    chat = run("chat", "--bank", place, typed=f"{GENERAL[0]}\n{question}\n{question}\n/new\n\n")
    assert chat.count("memory: doc0") == 1  # the second time it is the same conversation
    assert "(model;" in chat

    plot = tmp_path / "gates.svg"
    trained = json.loads(run("train-router", "--bank", place, "--plot", plot, "--json"))
    assert trained["gates"]["likeness"]["accuracy"] > 0.9
    assert plot.read_text().count("</svg>") == 1
    assert "gates on held-out questions" in run("train-router", "--bank", place)

    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_of(corpus)))
    options = ("--bank", place, "--count", 3, "--max-new-tokens", 8)
    assert "questions of no document" in run("eval", file, *options)
    assert json.loads(run("eval", file, *options, "--json"))["unrelated"]["count"] == 3
    run("eval", file, *options, "--metric", "luck", code=2)


def test_what_cannot_be_drawn_is_refused_before_training(corpus_and_bank, tmp_path):
    _, place = corpus_and_bank
    for plot, code in ((tmp_path / "gates.docx", 2), (tmp_path / "no folder" / "gates.svg", 4), (tmp_path / "x", 2)):
        run("train-router", "--bank", place, "--plot", plot, code=code)


def test_a_message_that_is_too_long_does_not_end_the_chat(corpus_and_bank):
    corpus, place = corpus_and_bank
    question = corpus.questions(0)[0].text
    chat = run("chat", "--bank", place, typed=f"{question}\n{'word ' * 6000}\n{question}\n\n")
    assert chat.count("bank:") == 2
    assert "window" in chat


def test_a_kill_while_a_router_is_trained_leaves_the_old_one(corpus_and_bank):
    _, place = corpus_and_bank
    before = (place / "router.safetensors").read_bytes()
    command = [sys.executable, "-m", "lcc", "bank", "train-router", "--bank", str(place), "--seed", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as training:
        assert any("reading questions" in line for line in training.stderr)
        training.kill()
    assert training.returncode == -signal.SIGKILL
    assert (place / "router.safetensors").read_bytes() == before
    run("train-router", "--bank", place, "--seed", 1)
    assert (place / "router.safetensors").read_bytes() != before
