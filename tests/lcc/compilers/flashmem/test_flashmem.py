"""The compiler ``flashmem``: shipped weights, files for other models, and memories that go anywhere."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.compilers.flashmem.compiler import FlashMemCompiler
from lcc.compilers.flashmem.learned import SHIPPED, latent_embeddings, load_shipped, save
from lcc.inference.reader import Reader
from lcc.modeling.fingerprint import model_digests
from lcc.modeling.prefill import prefill
from lcc.synthetic.people import document
from lcc.synthetic.seeds import DEMO
from lcc.text.chat_format import ChatFormat
from tests.lcc.compilers.flashmem.cases import consolidator
from tests.support.tiny_models import tiny_model

FORMS = ("per_layer", "last")
OPTIONS = {"compiler": "flashmem", "ratio": 8, "progress": False, "certify": False}


@pytest.fixture
def doc():
    return document(random.Random(DEMO + 500), people=4, attributes=4)


@pytest.fixture
def learned(llama, tmp_path):
    """Files of consolidators that were not trained."""

    def made(form, model=llama):
        path = tmp_path / f"{form}.safetensors"
        save(path, consolidator(model, form), model_digests(model), {}, [])
        return str(path)

    return made


def test_shipped_weights_keep_more_than_first_tokens(embedded, doc, data_made):
    model, tokenizer = embedded
    chat = ChatFormat.of(tokenizer)
    said = Reader.of_text(model, chat, doc.text).say([question.text for question in doc.questions()], 12)
    kl = {}
    for form in FORMS:
        memory = lcc.compile(model, tokenizer, doc.text, consolidator=form, **OPTIONS)
        kl[form] = said.kl(Reader.of_memory(model, chat, memory))
    with torch.no_grad():
        kept = prefill(model, [*chat.prefix_ids, *chat.ids(doc.text)[: memory.buffer_tokens]])
    kl["first tokens"] = said.kl(Reader(model, chat, kept))
    assert kl["per_layer"] < 0.1 * kl["first tokens"]
    assert kl["last"] < kl["first tokens"]
    assert not data_made


def test_a_memory_names_its_weights_and_goes_wherever_a_memory_goes(embedded, doc, tmp_path):
    model, tokenizer = embedded
    memory = lcc.compile(model, tokenizer, doc.text, **OPTIONS)
    again = lcc.compile(model, tokenizer, doc.text, **OPTIONS)
    assert torch.equal(memory.kv.keys, again.kv.keys)
    digest = hashlib.sha256((SHIPPED / "per_layer.safetensors").read_bytes()).hexdigest()
    assert memory.compiler["shipped_per_layer"] == digest
    assert memory.compiler == {"name": "flashmem"} | FlashMemCompiler().fingerprint()
    memory.save(tmp_path / "m")
    loaded = lcc.Memory.load(tmp_path / "m")
    loaded.verify(model, tokenizer)
    questions = [question.text for question in doc.questions()[:4]]
    answers, own = (lcc.ask(model, tokenizer, one, questions, max_new_tokens=8) for one in (loaded, memory))
    assert answers == own
    assert lcc.export(model, loaded, tmp_path / "s", "safetensors").exists()
    assert lcc.quantize(loaded, "int8", model, tokenizer, answers=2, max_new_tokens=2).compiler == memory.compiler
    short = {"general_queries": 4, "self_study_questions": 4, "steps": 1, "certify": False, "progress": False}
    later = lcc.compile(model, tokenizer, doc.text, compiler="direct_kv", start=loaded, ratio=8, **short)
    assert later.lineage[-1]["compiler"]["name"] == "flashmem"


@pytest.mark.parametrize("form", FORMS)
def test_it_writes_with_a_file(llama, tokenizer, text, learned, form):
    path = learned(form)
    memory = lcc.compile(llama, tokenizer, text, learned=path, **OPTIONS)
    assert memory.settings["learned_digest"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert torch.equal(memory.kv.keys, lcc.compile(llama, tokenizer, text, learned=path, **OPTIONS).kv.keys)
    other = "last" if form == "per_layer" else "per_layer"
    with pytest.raises(lcc.InputError, match=f"holds the consolidator '{form}': leave consolidator out"):
        lcc.compile(llama, tokenizer, text, learned=path, consolidator=other, **OPTIONS)


def test_what_it_cannot_write_with_is_refused(llama, tokenizer, text, learned, tmp_path):
    with pytest.raises(lcc.MismatchError, match=r"embedded model alone: .* python -m .*train .*--set learned=FILE"):
        lcc.compile(llama, tokenizer, text, **OPTIONS)
    with pytest.raises(lcc.MemoryFileError, match=r"cannot read .*missing"):
        lcc.compile(llama, tokenizer, text, learned=str(tmp_path / "missing"), **OPTIONS)
    with pytest.raises(lcc.MismatchError, match="is not the file that it was"):
        lcc.compile(llama, tokenizer, text, learned=learned("last"), learned_digest="0", **OPTIONS)
    foreign = learned("last", tiny_model("llama", initializer_range=0.5, intermediate_size=32))
    with pytest.raises(lcc.MismatchError, match="was trained for another model"):
        lcc.compile(llama, tokenizer, text, learned=foreign, **OPTIONS)
    module = consolidator(llama, "last")
    module.form = "per_layer"
    save(tmp_path / "wrong", module, model_digests(llama), {}, [])
    with pytest.raises(lcc.MemoryFileError, match="holds no consolidator that this version knows"):
        lcc.compile(llama, tokenizer, text, learned=str(tmp_path / "wrong"), **OPTIONS)


def test_latents_for_a_cache_are_what_the_module_writes(embedded, llama, learned):
    model, _ = embedded
    with torch.no_grad():
        text, hidden = prefill(model, [1, 9, 12, 40]), torch.randn(model.config.hidden_size)
        expected = load_shipped("last", model).embeddings(model, text, hidden, 8)
    found = latent_embeddings(model, text, hidden)
    assert found.shape == (8, model.config.hidden_size)
    assert torch.equal(found, expected)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(lcc.InputError, match="holds the consolidator 'per_layer', which writes no embeddings"):
        latent_embeddings(llama, text, hidden, learned=learned("per_layer"))


def test_the_command_line_names_it(doc, tmp_path):
    (tmp_path / "text").write_text(doc.text)
    command = ["compile", str(tmp_path / "text"), "-o", str(tmp_path / "m"), "--compiler", "flashmem", "--json"]
    shown = CliRunner().invoke(cli.app, [*command, "--ratio", "16", "--no-certify"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["compiler"]["name"] == "flashmem"
