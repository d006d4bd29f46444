"""Full text, nothing and memories on real models, and the command."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.errors import InputError, MismatchError
from lcc.evaluation import Example, FullText, NoText, answer_examples
from lcc.evaluation.suites import suite
from lcc.inference.asking import ask_text
from lcc.inference.reader import prefill_chat
from lcc.memory.memory import Memory
from lcc.pipeline import memory_method
from lcc.pipeline.memory_method import compiled_memories
from lcc.pipeline.settings import make_settings
from lcc.text.chat_format import ChatFormat


def test_query_ids_are_the_chat_templates(embedded):
    _, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    example = Example("Mara has a dog .", "And Hugo?", ("cat",), history=(("Who has a dog?", "Mara"), ("When?", "May")))
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Mara has a dog .\n\nWho has a dog?"},
        {"role": "assistant", "content": "Mara"},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "May"},
        {"role": "user", "content": "And Hugo?"},
    ]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ids = [*chat.prefix_ids, *chat.ids(example.context), *example.request.query_ids(chat)]
    assert ids == list(expected)
    prefixed = Example("c", "Who?", ("a",), answer_prefix="It is")
    assert prefixed.request.query_ids(chat) == chat.query_ids("Who?") + chat.ids("It is")


def test_bounds(embedded):
    model, tokenizer = embedded
    examples = suite("dialogue", 1, lengths=(300,))
    opening = [example for example in examples if not example.history]
    full = FullText(model, tokenizer).answer(opening[0].context, opening)
    assert full.texts == [example.answers[0] for example in opening]
    assert full.texts == ask_text(model, tokenizer, opening[0].context, [example.question for example in opening])
    nothing = NoText(model, tokenizer).answer(opening[0].context, opening)
    assert nothing.texts == ask_text(model, tokenizer, "", [example.question for example in opening])
    assert full.kv_bytes > 10 * nothing.kv_bytes


def test_answers_come_in_the_examples_order_whatever_their_length(embedded):
    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    visible = prefill_chat(model, chat, "")
    words = "moon stone river cloud lamp chair spoon window".split()
    examples = [
        Example("", f"Say: {' '.join(words[i : i + 3])}.", (" ".join(words[i : i + 3]),), max_new_tokens=1 + i % 3)
        for i in range(5)
    ]
    found = answer_examples(model, chat, visible, examples, batch=2, after_text=False)
    alone = [answer_examples(model, chat, visible, [example], batch=1, after_text=False)[0] for example in examples]
    assert found == alone
    assert len(set(alone)) == len(examples)
    assert [len(answer.split()) for answer in found] == [1 + i % 3 for i in range(5)]


def test_texts_beyond_the_window_are_refused(embedded):
    with pytest.raises(InputError, match="need a window of"):
        FullText(*embedded).answer("moon " * 4608, [Example("", "Why?", ("x",))])


def test_memories_are_compiled_once(llama, tokenizer, text, fast, tmp_path, monkeypatch):
    example = Example(text, "Where does Mara live?", ("Alden",), max_new_tokens=4)
    settings = make_settings(**{name: value for name, value in fast.items() if name != "progress"})
    method = compiled_memories(llama, tokenizer, tmp_path / "memories", settings)
    first = method.answer(text, [example])
    memory = lcc.Memory.load(next((tmp_path / "memories").iterdir()))
    assert first.texts == lcc.ask(llama, tokenizer, memory, [example.question], max_new_tokens=4)
    assert first.trained_on == frozenset(memory.questions)
    assert first.seconds == memory.curve[-1]["seconds"]
    assert [path.suffix for path in (tmp_path / "memories").iterdir()] == [".safetensors"]
    monkeypatch.setattr(memory_method, "make_memory", lambda *_: pytest.fail("compiled again"))
    assert compiled_memories(llama, tokenizer, tmp_path / "memories", settings).answer(text, [example]) == first
    with pytest.raises(pytest.fail.Exception):
        compiled_memories(llama, tokenizer, tmp_path / "memories", settings.replace(seed=9)).answer(text, [example])


def test_the_memory_of_another_text_is_refused(llama, tokenizer, text, fast, tmp_path):
    settings = make_settings(**{name: value for name, value in fast.items() if name != "progress"})
    method = compiled_memories(llama, tokenizer, tmp_path, settings)
    method.make(text)
    (path,) = tmp_path.glob("*.safetensors")
    replace(Memory.load(path), source_sha256="ab").save(path)
    with pytest.raises(MismatchError, match="not the memory of its text: delete it"):
        method.answer(text, [Example(text, "Who?", ("x",), max_new_tokens=2)])


def test_identities_say_what_answers_depend_on(llama, tokenizer, tmp_path):
    def identity(queries=None, compiler="lcc", **settings):
        settings = make_settings(compiler=compiler, **settings)
        return compiled_memories(llama, tokenizer, tmp_path, settings, compiler, queries).identity

    base = identity()
    assert base == identity()
    assert json.dumps(base)
    assert base.items() > FullText(llama, tokenizer).identity.items()
    assert base != identity(ratio=4)
    assert base != identity(queries=["Say: dog."])
    assert identity(compiler="direct_kv")["compiler"] == {"name": "direct_kv"}


def command(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, ["eval", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.stdout if not code else result.output


def test_the_command(tmp_path):
    quick = ["--texts", 1, "--words", 200, "--general-count", 6, "--recipe", "paper", "--steps", 2]
    quick += ["--set", "general_queries=8", "--set", "max_response_tokens=8"]
    shown = json.loads(command("fiction", "-o", tmp_path / "out", *quick, "--json"))
    lines = {(line["task"], line["method"]): line for line in shown["lines"]}
    assert lines["fiction easy", "full_text"]["score"] == 1
    assert lines["fiction easy", "no_text"]["score"] == 0
    assert lines["general", "full_text"]["score"] >= 0.8
    assert lines["all questions", "memory"]["agreement"]["full_text"] < 1
    assert lines["general", "memory"]["kv_bytes"] < lines["general", "full_text"]["kv_bytes"] / 5
    with open(shown["results"]) as file:
        assert len(file.readlines()) == sum(
            line["questions"] for line in lines.values() if line["task"] != "all questions"
        )
    table = command("fiction", "-o", tmp_path / "out", *quick)
    for word in ("fiction", "full_text", "memory", "no_text", "KiB", "medians"):
        assert word in table


def test_the_command_on_a_file_with_one_metric(tmp_path):
    row = {"context": "Mara lives in the quiet old town of Alden.", "question": "Where does Mara live?"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {"answer": "Alden"}) + "\n")
    arguments = [path, "-o", tmp_path / "out", "--methods", "full_text,no_text", "--general-count", 0]
    shown = json.loads(command(*arguments, "--metric", "exact_match", "--json"))
    assert [(line["method"], line["score"]) for line in shown["lines"]] == [("full_text", 1.0), ("no_text", 0.0)]
    command(*arguments, "--methods", "full_text,psychic", code=2)
    command(*arguments, "--metric", "bleu", code=2)
    command(*arguments, "--metric", "judge", code=2)
    command(*arguments, "--judge", "judge.example", code=2)
    command(*arguments, "--longest", 3, code=2)
    command(tmp_path / "absent.jsonl", "-o", tmp_path / "out", code=2)
    command("fiction", "-o", path, code=4)
