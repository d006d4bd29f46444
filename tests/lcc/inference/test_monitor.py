"""The monitor: its threshold, its validation run, its file."""

from __future__ import annotations

import json
import math

import pytest

import lcc
from lcc.errors import InputError, MemoryFileError, MismatchError
from lcc.inference.conversation import Conversation
from tests.support.plain_memories import plain_memory

QUESTIONS = ["Where does Mara live?", "Say: dog cat.", "What is the job of Hugo, the baker?"]


@pytest.fixture
def memory(llama, tokenizer, text, monkeypatch):
    return plain_memory(llama, tokenizer, text, monkeypatch)[0]


def test_the_threshold_is_a_quantile():
    monitor = lcc.Monitor.of([float(number) for number in range(101)])
    assert (monitor.threshold, monitor.quantile, monitor.tokens, monitor.sinks) == (85.0, 0.85, 101, 1)
    assert not monitor.triggers([85.0, 3.0])
    assert monitor.triggers([3.0, 85.1])
    assert not monitor.triggers([])
    assert lcc.Monitor.of([1.0, 2.0], quantile=0.5).threshold == 1.5
    assert not lcc.Monitor().triggers([1e9])


@pytest.mark.parametrize("quantile", [-0.1, 1.1, math.nan, "0.85", True])
def test_a_quantile_that_is_none(quantile, llama, tokenizer, memory):
    with pytest.raises(InputError, match="quantile is"):
        lcc.Monitor.of([1.0], quantile)
    with pytest.raises(InputError, match="quantile is"):
        lcc.Monitor.calibrate(llama, tokenizer, memory, QUESTIONS, quantile)


def test_a_validation_run_without_entropies(llama, tokenizer, memory):
    for entropies in ([], [1.0, math.nan]):
        with pytest.raises(InputError, match="no entropies, or NaN"):
            lcc.Monitor.of(entropies)
    with pytest.raises(InputError, match="there is no question"):
        lcc.Monitor.calibrate(llama, tokenizer, memory, [])


def test_calibration_sees_what_conversations_see(llama, tokenizer, memory):
    monitor = lcc.Monitor.calibrate(llama, tokenizer, memory, QUESTIONS, 0.7, sinks=2, max_new_tokens=5)
    entropies = []
    for question in QUESTIONS:
        conversation = Conversation(llama, tokenizer, memory, monitor=lcc.Monitor(sinks=2))
        conversation.say(question, max_new_tokens=5)
        entropies += conversation.entropies
    assert monitor == lcc.Monitor.of(entropies, 0.7, 2, memory.fingerprint)
    assert 0 < monitor.threshold < math.log(len(memory.prefix_ids) + memory.buffer_tokens + 40)


def test_another_model(llama, tokenizer, memory, tmp_path):
    monitor = lcc.Monitor(1.0, fingerprint=memory.fingerprint | {"model_weights": "others"})
    with pytest.raises(MismatchError, match=r"calibrated for another model or tokenizer \(model_weights\)"):
        Conversation(llama, tokenizer, memory, monitor=monitor)
    llama.lm_head.weight.data += 1
    with pytest.raises(MismatchError, match="compiled for another model weights"):
        lcc.Monitor.calibrate(llama, tokenizer, memory, QUESTIONS)


@pytest.mark.parametrize("threshold", [0.0, 2.718281828459045, math.inf])
def test_a_file_and_back(threshold, tmp_path):
    monitor = lcc.Monitor(threshold, 4, 0.85, 10, {"model_weights": "abc"})
    monitor.save(tmp_path / "monitor.json")
    assert lcc.Monitor.load(tmp_path / "monitor.json") == monitor
    assert list(tmp_path.iterdir()) == [tmp_path / "monitor.json"]


def damaged(content: dict, **changed: object) -> str:
    return json.dumps(content | changed)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: json.dumps(content)[:-9], "is not JSON"),
        (lambda content: json.dumps([content]), "is no monitor of the format lcc-monitor-1"),
        (lambda content: damaged(content, format="lcc-monitor-2"), "is no monitor of the format"),
        (lambda content: damaged(content, threshold=-1.0), "threshold is -1.0"),
        (lambda content: damaged(content, threshold="2"), r"threshold is 2 \(str\)"),
        (lambda content: damaged(content, threshold=math.nan), "holds NaN"),
        (lambda content: damaged(content, sinks=-1), "sinks is -1"),
        (lambda content: damaged(content, quantile=2), "quantile is 2"),
        (lambda content: damaged(content, fingerprint={"a": 1}), "fingerprint"),
        (lambda content: damaged(content, more=1), "is damaged: .*more"),
    ],
)
def test_a_damaged_file(damage, message, tmp_path):
    path = tmp_path / "monitor.json"
    lcc.Monitor(1.0).save(path)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(MemoryFileError, match=message):
        lcc.Monitor.load(path)


def test_a_file_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(MemoryFileError, match=r"cannot read .*absent"):
        lcc.Monitor.load(tmp_path / "absent")
    with pytest.raises(MemoryFileError, match="cannot write to the folder"):
        lcc.Monitor(1.0).save(tmp_path / "no folder" / "monitor.json")
