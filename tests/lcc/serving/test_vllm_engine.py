"""Memories in the engine of a real vLLM on the CPU, without the front end: it may be asked anything."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import torch

import lcc
from lcc.embedded_model import EMBEDDED
from lcc.inference import requests
from lcc.inference.asking import ask_text
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from tests.support.plain_memories import plain_memory
from tests.support.vllm_engine import BLOCK
from tests.support.vllm_python import VLLM_PYTHON, needs_vllm

pytestmark = [needs_vllm, pytest.mark.slow]
ROOT = Path(__file__).parents[3]
WINDOW, BLOCKS, LONG = 512, 20, 90
ONE_TO_ANSWER = {"max_tokens": 24}


class Asked:
    """Makes the prompts of requests to the engine, and what they must be answered with."""

    def __init__(self, model, tokenizer, memories):
        self.model, self.tokenizer, self.memories = model, tokenizer, memories
        self.chat = ChatFormat.of(tokenizer)

    def of(self, name, turns, named=None, **sampling):
        """A request; ``named``: the memory that it names, if another one than its placeholders are for."""
        memory = self.memories[name]
        placeholders = [self.chat.prefix_ids[0]] * (len(memory.prefix_ids) + memory.buffer_tokens)
        ids = placeholders + self.chat.query_ids(turns)
        return {"ids": ids, "memory": {"memory": named or name}, "sampling": ONE_TO_ANSWER | sampling}

    def ids_after(self, name, question, tokens):
        """What transformers goes on with, whatever ends an answer."""
        inputs = lcc.prompt(self.model, self.tokenizer, self.memories[name], [question])
        cache = lcc.attach(self.model, self.memories[name])
        with torch.no_grad():
            row = self.model.generate(
                **inputs, past_key_values=cache, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                eos_token_id=None,
            )[0]  # fmt: skip
        return row[inputs["input_ids"].shape[1] :].tolist()

    def text(self, answer) -> str:
        return self.tokenizer.decode(answer["ids"], skip_special_tokens=True).strip()


@pytest.fixture(scope="module")
def asked(_embedded, tmp_path_factory):
    model, tokenizer = _embedded
    folder = tmp_path_factory.mktemp("memories")
    documents = [document(random.Random(f"vllm {number}"), people=2, attributes=4 + number) for number in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        memories = {f"m{n}": plain_memory(model, tokenizer, one.text, patch)[0] for n, one in enumerate(documents)}
    for name, memory in memories.items():
        memory.save(folder / f"{name}.lcc.safetensors")
    whole = (folder / "m0.lcc.safetensors").read_bytes()
    (folder / "torn.lcc.safetensors").write_bytes(whole[:-100])
    asked = Asked(model, tokenizer, memories)
    asked.folder = folder
    asked.questions = {f"m{n}": [question.text for question in one.questions()][:12] for n, one in enumerate(documents)}
    return asked


@pytest.fixture(scope="module")
def cases(asked):
    """Requests that are made together, step by step, by what they are to show."""
    ask, (first, second) = asked.of, (asked.questions[name] for name in ("m0", "m1"))
    both = [ask(name, question) for name in ("m0", "m1") for question in asked.questions[name]]
    long = [ask("m0" if n % 2 else "m1", first[n], ignore_eos=True, max_tokens=LONG) for n in range(6)]
    turns = (first[0], "I do not know.", first[1])
    return {
        "batch": [both],
        "preempted": [long],
        "second turn": [[ask("m0", first[0])], [ask("m0", turns)]],
        "poison": [[ask("m0", first[2], prompt_logprobs=1)], [ask("m0", first[2]), ask("m0", first[3])]],
        "bad ones": [[ask("m0", first[0], "nobody"), ask("m1", second[0]), ask("m0", first[0], "torn"),
                      ask("m0", first[0], "../m0"), ask("m0", first[0])]],
        "no placeholders": [[{"ids": [5, 6, 7], "memory": {"memory": "m0"}, "sampling": ONE_TO_ANSWER},
                             ask("m1", first[0]) | {"memory": {"memory": 7}},
                             {"ids": list(range(20, 200)), "memory": {"memory": "m0"}, "sampling": ONE_TO_ANSWER},
                             ask("m1", second[1])]],
        "text": [[{"ids": asked.chat.prefix_ids + asked.chat.query_ids("Say: dog cat.", False), "memory": {},
                   "sampling": ONE_TO_ANSWER}]],
    }  # fmt: skip


@pytest.fixture(scope="module")
def results(asked, cases, tmp_path_factory):
    work = tmp_path_factory.mktemp("vllm")
    task = {"model": str(EMBEDDED), "folder": str(asked.folder), "cache": str(work / "cache"), "window": WINDOW,
            "blocks": BLOCKS, "cases": cases, "out": str(work / "out.json")}  # fmt: skip
    (work / "task.json").write_text(json.dumps(task))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [VLLM_PYTHON, "-m", "tests.support.vllm_engine", str(work / "task.json")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-4000:]
    return json.loads((work / "out.json").read_text())


def two_memories_in_a_batch_answer_as_ask_does(asked, results):
    (answers,) = results["batch"]["steps"]
    expected = [
        text
        for name, questions in asked.questions.items()
        for text in lcc.ask(asked.model, asked.tokenizer, asked.memories[name], questions, max_new_tokens=24)
    ]
    assert [asked.text(answer) for answer in answers] == expected
    assert len(expected) == 24
    for answer, name in zip(answers, ["m0"] * 12 + ["m1"] * 12, strict=True):
        memory = asked.memories[name]
        tokens = len(memory.prefix_ids) + memory.buffer_tokens
        assert tokens % BLOCK
        assert answer["cached"] == tokens
        assert len(answer["told"]["memory_digests"]) == 1


def preempted_requests_load_their_memory_again(asked, results):
    assert results["preempted"]["preemptions"] > 0
    (answers,) = results["preempted"]["steps"]
    for number, answer in enumerate(answers):
        name = "m0" if number % 2 else "m1"
        assert answer["ids"] == asked.ids_after(name, asked.questions["m0"][number], LONG)


def a_second_turn(asked, results):
    first, second = (step[0] for step in results["second turn"]["steps"])
    turns = (asked.questions["m0"][0], "I do not know.", asked.questions["m0"][1])
    model, chat, memory = asked.model, asked.chat, asked.memories["m0"]
    asked_here = [requests.Request(turns, max_new_tokens=24)]
    (expected,) = requests.answer(model, chat, lcc.attach(model, memory).kv(), asked_here)
    assert asked.text(second) == expected.text
    assert second["cached"] >= first["cached"]


def blocks_that_were_read_as_text_are_nobody_elses(asked, results):
    _, plain = results["poison"]["steps"]
    questions = asked.questions["m0"][2:4]
    assert [asked.text(one) for one in plain] == lcc.ask(asked.model, asked.tokenizer, asked.memories["m0"], questions)


def what_cannot_be_loaded_fails_alone(asked, results):
    (answers,) = results["bad ones"]["steps"]
    assert [answer["finish"] for answer in answers] == ["error", "stop", "error", "error", "stop"]
    for place, name in ((1, "m1"), (4, "m0")):
        (expected,) = lcc.ask(asked.model, asked.tokenizer, asked.memories[name], asked.questions[name][:1])
        assert asked.text(answers[place]) == expected


def prompts_without_placeholders_are_not_answered(asked, results):
    (answers,) = results["no placeholders"]["steps"]
    assert [answer["finish"] for answer in answers] == ["error", "error", "error", "stop"]
    (expected,) = lcc.ask(asked.model, asked.tokenizer, asked.memories["m1"], asked.questions["m1"][1:2])
    assert asked.text(answers[3]) == expected


def requests_without_a_memory_are_left_alone(asked, results):
    (answers,) = results["text"]["steps"]
    assert [asked.text(answers[0])] == ask_text(asked.model, asked.tokenizer, "", ["Say: dog cat."])
    assert answers[0]["told"] is None


def setups_that_would_read_memories_wrongly_are_refused(asked, results):
    said = results["refusals"]
    assert said.pop("none") == said.pop("ngram") == ""
    for name, words in (("policy", "fail"), ("mla", "MLA"), ("eagle", "eagle"), ("groups", "SlidingWindowSpec"),
                        ("window", "SlidingWindowSpec")):  # fmt: skip
        assert words in said[name]


def every_worker_takes_its_own_heads(asked, results):
    heads = results["heads"]
    assert [heads[f"8 2 {rank}"] for rank in range(2)] == [[0, 4], [4, 8]]
    assert [heads[f"8 8 {rank}"] for rank in range(8)] == [[rank, rank + 1] for rank in range(8)]
    assert [heads[f"2 4 {rank}"] for rank in range(4)] == [[0, 1], [0, 1], [1, 2], [1, 2]]
    assert [heads[f"1 3 {rank}"] for rank in range(3)] == [[0, 1]] * 3


CHECKS = (
    two_memories_in_a_batch_answer_as_ask_does,
    preempted_requests_load_their_memory_again,
    a_second_turn,
    blocks_that_were_read_as_text_are_nobody_elses,
    what_cannot_be_loaded_fails_alone,
    prompts_without_placeholders_are_not_answered,
    requests_without_a_memory_are_left_alone,
    setups_that_would_read_memories_wrongly_are_refused,
    every_worker_takes_its_own_heads,
)


def test_vllm(asked, results, subtests):
    """One engine for all: it takes half a minute to start."""
    for check in CHECKS:
        with subtests.test(check.__name__):
            check(asked, results)
