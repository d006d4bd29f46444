"""Redacted passages: a memory is that of the text without them, and nothing has read them."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.text.chat_format import ChatFormat
from lcc.text.redaction import redact
from lcc.utils.hashing import text_digest

runner = CliRunner()


@pytest.fixture
def passages(text):
    """The second and the fourth sentence, the latter in white space of its own."""
    sentences = [f"{each}." for each in text.rstrip(".").split(". ")]
    return [sentences[1], sentences[3].replace(" ", "\n ")]


def ids_that_are_read(model, monkeypatch):
    """All token ids that go into the model or a copy of it, and into optimisation, as one list a call."""
    seen = []
    real = torch.nn.functional.embedding

    def embedding(ids, *arguments, **options):
        seen.append(ids.flatten().tolist())
        return real(ids, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "embedding", embedding)
    return seen


def test_the_memory_is_that_of_the_text_without_them(llama, tokenizer, text, fast, passages, tmp_path):
    memory = lcc.compile(llama, tokenizer, text, redact=passages, **fast)
    left = redact(text, passages, tokenizer)
    plain = lcc.compile(llama, tokenizer, left, **fast)
    assert memory.digest == plain.digest
    assert (memory.redacted, plain.redacted) == (2, 0)
    assert memory.source_sha256 == plain.source_sha256 == text_digest(left)
    assert memory.questions == plain.questions
    memory.save(tmp_path / "memory")
    assert lcc.Memory.load(tmp_path / "memory").redacted == 2
    content = (tmp_path / "memory").read_bytes()
    assert not [each for each in passages if " ".join(each.split()).encode() in content]
    assert not [each for each in passages if text_digest(each).encode() in content]


def test_nothing_reads_them(llama, tokenizer, text, fast, passages, data_made, monkeypatch):
    seen = ids_that_are_read(llama, monkeypatch)
    lcc.compile(llama, tokenizer, text, redact=passages, **fast)
    chat = ChatFormat.of(tokenizer)
    forbidden = [chat.ids(" ".join(each.split())) for each in passages]
    (data,) = data_made
    samples = [*data.reconstruction, *data.train, *data.held_out]
    read = [*seen, *([*sample.query_ids, *sample.response_ids] for sample in samples)]
    assert any(holds(ids, chat.ids("the")) for ids in read)
    assert not [ids for ids in forbidden for each in read if holds(each, ids)]
    # The same search finds them where they are not redacted.
    lcc.compile(llama, tokenizer, text, **fast)
    assert all(any(holds(each, ids) for each in seen) for ids in forbidden)


def holds(ids, part):
    return any(list(ids[at : at + len(part)]) == list(part) for at in range(len(ids) - len(part) + 1))


def test_documents_that_lack_a_passage_fail(compile_all, text, tmp_path):
    passage = text.split(". ")[2]
    outcomes = compile_all(redact=[passage])
    assert [outcome.status for outcome in outcomes] == ["compiled", "compiled", "failed"]
    assert "redact[0] is" in outcomes[2].error
    memory = lcc.Memory.load(outcomes[0].output)
    assert memory.redacted == 1
    assert [outcome.status for outcome in compile_all(redact=[passage])[:2]] == ["skipped", "skipped"]
    assert "differs in text" in compile_all(redact=[text.split(". ")[3]])[0].error


@pytest.mark.parametrize("given", [["nobody"], "Mara", [""], [1]])
def test_passages_that_cannot_be_redacted(given, llama, tokenizer, text, fast):
    with pytest.raises(lcc.InputError, match="redact"):
        lcc.compile(llama, tokenizer, text, redact=given, **fast)


def test_a_text_of_nothing_else(llama, tokenizer, text, fast):
    with pytest.raises(lcc.InputError, match="empty"):
        lcc.compile(llama, tokenizer, text, redact=[text], **fast)


@pytest.fixture
def command(llama, tokenizer, text, passages, tmp_path):
    """``lcc`` with a file of passages, in the folder of the test."""
    for saved in (llama, tokenizer):
        saved.save_pretrained(tmp_path / "model")
    (tmp_path / "text").write_text(text)
    (tmp_path / "passages").write_text("\n\n\n".join(passages).replace("\n ", " ") + "\n")
    small = "--steps 1 --set batch=2 --set self_study_questions=0 --set general_queries=4 --no-certify --ratio 8"

    def run(words: str):
        given = (
            f"{words} --model {tmp_path / 'model'}".replace("{", f"{tmp_path}/")
            .replace("}", "")
            .replace("SMALL", small)
        )
        return runner.invoke(cli.app, given.split())

    return run


def test_the_commands(command, text, tokenizer, passages, tmp_path):
    assert command("compile {text} -o {new} --redact {passages} SMALL").exit_code == 0
    memory = lcc.Memory.load(tmp_path / "new")
    assert memory.redacted == 2
    assert memory.source_sha256 == text_digest(redact(text, passages, tokenizer))
    again = command("compile {text} -o {new} --redact {passages} SMALL")
    assert "skipped" in again.stderr
    assert command("compile {text} -o {new} SMALL").exit_code == 3
    assert command("compile {text} -o {passages} --redact {passages} --force SMALL").exit_code == 4
    tested = command("leaks {new} --text {text} --redacted {passages} --attempts 1 --write --json")
    assert tested.exit_code == 0, tested.output
    kept = lcc.Memory.load(tmp_path / "new")
    told = {"path": str(tmp_path / "new"), "signature_dropped": False}
    assert json.loads(tested.stdout) == told | kept.leaks
    assert kept.leaks["redacted"] == kept.leaks["passages"]["count"] == 2
    assert kept.digest == memory.digest
    shown = runner.invoke(cli.app, ["inspect", str(tmp_path / "new")]).output
    assert "2 passages" in shown
    assert "of the redacted passages" in " ".join(shown.replace("│", " ").split())
    assert command("leaks {new} --text {text}").exit_code == 3


def test_a_dry_run_counts_what_is_left(command):
    whole, left = (
        json.loads(command(f"compile {{text}} --dry-run --json --steps 1 {more}").stdout)["documents"][0]
        for more in ("", "--redact {passages}")
    )
    assert left["text_tokens"] < whole["text_tokens"]
    assert command("compile {text} --dry-run --redact nobody").exit_code == 2
