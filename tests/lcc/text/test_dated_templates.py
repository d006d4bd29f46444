"""Chat templates that write the date: a memory keeps the date that it was compiled with."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

import lcc
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.inference.conversation import Conversation
from lcc.text.chat_format import ChatFormat
from lcc.training import trainer as optimize

DATED = [
    "Today is {{ strftime_now('%d %b %Y') }}.",
    'Today is {{ strftime_now( "%Y-%m-%d" ) }}.',
    "{% set today = strftime_now('%d %B %Y') %}Today is {{ today }}, {{ strftime_now('%A') }}.",
    "{% set f = '%Y-%m' %}{% set now = strftime_now %}Today is {{ now(format=f) }}.",
    "{% if strftime_now is defined %}Today is {{ strftime_now('%-d ' ~ '%b %Y') }}.{% endif %}",
]


@pytest.fixture(params=DATED)
def dated(request, tokenizer):
    copied = build_tokenizer()
    copied.chat_template = "{{ bos_token }}<|system|>" + request.param + "<|end|>" + tokenizer.chat_template
    return copied


def test_a_date_is_written_once_and_kept(dated, llama, text, fast, tmp_path):
    memory = lcc.compile(llama, dated, text, **fast)
    assert memory.date is not None
    memory.save(tmp_path / "m")
    kept = lcc.Memory.load(tmp_path / "m")
    assert kept.date == memory.date
    assert tuple(ChatFormat.of(dated, date=memory.date).prefix_ids) == memory.prefix_ids
    later = ChatFormat.of(dated, date="2031-05-06T07:08:09")
    assert "2031" in later.prefix
    assert tuple(later.prefix_ids) != memory.prefix_ids


def test_a_compilation_goes_on_with_the_date_that_it_began_with(dated, llama, text, fast, tmp_path, monkeypatch):
    """A kill on one day, the same command on the next: the prefix that the teacher read stays what it was."""
    real = optimize.step_loss

    def killed(*arguments):
        raise KeyboardInterrupt

    def compile_on(day, loss, folder):
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls: cls.fromisoformat(day))})
        monkeypatch.setattr("lcc.text.chat_format.datetime", clock)
        monkeypatch.setattr(optimize, "step_loss", loss)
        return lcc.compile(llama, dated, text, checkpoint=tmp_path / folder, **fast)

    with pytest.raises(KeyboardInterrupt):
        compile_on("2031-05-06T07:08:09", killed, "run")
    memory = compile_on("2032-07-08T09:10:11", real, "run")
    assert memory.date == "2031-05-06T07:08:09"
    assert "2031" in dated.decode(list(memory.prefix_ids)).replace(" ", "")
    assert compile_on("2032-07-08T09:10:11", real, "other").date == "2032-07-08T09:10:11"


def test_memories_of_two_days_are_refused_together_by_the_date(dated, llama, text, fast):
    today = lcc.compile(llama, dated, text, **fast)
    other = replace(
        today, date="2031-05-06T07:08:09", prefix_ids=tuple(ChatFormat.of(dated, date="2031-05-06T07:08:09").prefix_ids)
    )
    assert lcc.ask(llama, dated, [today, today], ["Where?"], max_new_tokens=2)
    with pytest.raises(lcc.MismatchError, match="date"):
        lcc.ask(llama, dated, [today, other], ["Where?"], max_new_tokens=2)


def test_a_turn_that_holds_the_date_is_written_for_the_memorys_day(llama, text, fast):
    """The date may stand anywhere in a template, not in the prefix alone."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", " {{ strftime_now('%Y') }}<|end|>")
    memory = replace(lcc.compile(llama, tokenizer, text, **fast), date="2031-05-06T07:08:09")
    ids = lcc.prompt(llama, tokenizer, memory, ["Where?"])["input_ids"][0]
    assert "2031" in tokenizer.decode(ids).replace(" ", "")
    assert "2031" in Conversation(llama, tokenizer, memory).chat.ask


def test_a_template_without_date_keeps_none(llama, tokenizer, text, fast):
    assert lcc.compile(llama, tokenizer, text, **fast).date is None
