"""The compiler ``gradmem``: it needs no training, and goes on from what was learned."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

import lcc
from lcc.compilers.gradmem.learned import Learned, writing_model
from lcc.compilers.gradmem.starts import text_starts
from lcc.compilers.gradmem.writing import memory_kv, write
from lcc.modeling.fingerprint import model_digests
from lcc.modeling.lora import frozen
from lcc.modeling.prefill import prefill
from tests.support.tiny_models import tiny_model

FORMS = ("embeddings", "kv")


@pytest.fixture
def job(llama, tokenizer, text):
    def run(**overrides):
        options = {"compiler": "gradmem", "ratio": 8, "progress": False, "certify": False}
        return lcc.compile(llama, tokenizer, text, **(options | overrides))

    return run


def starts_of(model, text_ids, form, tokens):
    """The start that the model makes of one text, and what it is a start of."""
    ids = torch.tensor([text_ids])
    texts = ids, torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        prefix = prefill(model, [1, 2])
        return {name: tensor[0] for name, tensor in text_starts(model, prefix, *texts, tokens, form).items()}


def learned_of(model, text_ids, form, tokens=20, seed=0):
    """Something that was learned: a projection and step sizes that are no defaults, perhaps a start of ``tokens``."""
    torch.manual_seed(seed)
    learned = Learned.of_rates(model, form, [0.5, 0.25]).with_projection(model)
    learned.start = starts_of(model, text_ids, form, tokens) if tokens else {}
    for tensor in learned.parameters().values():
        tensor.add_(0.05 * torch.randn(tensor.shape))
    return learned


def saved(learned, model, path):
    learned.save(path, model_digests(model), {}, [])
    return str(path)


def test_without_writes_it_is_tokens_of_the_text_in_even_distances(job, llama, tokenizer, text):
    memory = job(writes=0)
    ids, count = tokenizer(text).input_ids, memory.buffer_tokens
    with torch.no_grad():
        read = prefill(llama, [*memory.prefix_ids, *ids]).tail(len(ids)).unrotated(llama)
    expected = read.select([math.ceil(len(ids) * part / count) - 1 for part in range(1, count + 1)])
    torch.testing.assert_close(memory.kv.keys, expected.keys, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(memory.kv.values, expected.values, rtol=1e-4, atol=1e-5)
    assert memory.compiler["name"] == "gradmem"
    assert memory.curve == []


@pytest.mark.parametrize("form", FORMS)
def test_writes_lower_the_texts_loss(job, form):
    memory = job(form=form, writes=5, write_rate=0.05)
    losses = [point["loss"] for point in memory.curve]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert not torch.equal(memory.kv.keys, job(form=form, writes=0).kv.keys)
    assert torch.equal(memory.kv.keys, job(form=form, writes=5, write_rate=0.05).kv.keys)


@pytest.mark.parametrize("tokens", [None, 20])
@pytest.mark.parametrize("form", FORMS)
def test_it_writes_from_what_was_learned(job, llama, tokenizer, text, tmp_path, form, tokens):
    ids = tokenizer(text).input_ids
    learned = learned_of(llama, ids, form, tokens)
    path = saved(learned, llama, tmp_path / "learned")
    memory = job(learned=path)
    with frozen(llama):
        with torch.no_grad():
            prefix = prefill(llama, memory.prefix_ids)
        texts = torch.tensor([ids])
        counted = torch.ones_like(texts, dtype=torch.bool)
        start = learned.memories(llama, prefix, texts, counted, memory.buffer_tokens)
        rates = [*learned.rates, learned.rates[-1]]
        for writes, settings in ((2, {}), (3, {"writes": 3}), (1, {"writes": 1})):
            written = write(llama, prefix, start, texts, counted, rates[:writes], "none", learned.used).memory
            expected = memory_kv(llama, prefix, learned.used(written))
            kv = job(learned=path, **settings).kv
            torch.testing.assert_close(kv.keys, expected.keys, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(kv.values, expected.values, rtol=1e-4, atol=1e-5)
    assert memory.settings["learned_digest"] == hashlib.sha256((tmp_path / "learned").read_bytes()).hexdigest()


@pytest.mark.parametrize("form", FORMS)
def test_a_projection_is_w_m_plus_b(llama, form):
    learned = learned_of(llama, [3, 4, 5, 6], form)
    name, start = next(iter(learned.start.items()))
    memory = {name: tensor.expand(2, *tensor.shape) for name, tensor in learned.start.items()}
    weight, bias = (learned.projection[f"{name}.{part}"] for part in ("weight", "bias"))
    head = (1,) * (start.ndim - 2)
    used = learned.used(memory)[name]
    torch.testing.assert_close(used[(0, *head, 3)], weight[head] @ start[(*head, 3)] + bias[(*head, 0)])


def test_a_lora_beside_a_learned_start_acts_in_writes_alone(job, llama, tokenizer, text, tmp_path):
    learned = learned_of(llama, tokenizer(text).input_ids, "embeddings")
    plain = job(learned=saved(learned, llama, tmp_path / "plain"))
    untouched = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    with writing_model(llama, {}, rank=2) as (_, lora):
        learned.lora = {name: tensor.detach().clone() for name, tensor in lora.items()}
    path = saved(learned, llama, tmp_path / "zero")
    torch.testing.assert_close(job(learned=path).kv.keys, plain.kv.keys)
    learned.lora = {name: tensor + 0.1 for name, tensor in learned.lora.items()}
    path = saved(learned, llama, tmp_path / "lora")
    assert not torch.allclose(job(learned=path).kv.keys, plain.kv.keys)
    still = job(learned=path, writes=0).kv
    torch.testing.assert_close(still.keys, job(learned=str(tmp_path / "plain"), writes=0).kv.keys)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in llama.state_dict().items())


def test_a_lora_that_makes_the_start_acts_in_nothing_else(job, llama, tokenizer, text, tmp_path):
    learned = Learned.of_rates(llama, "kv", [0.5])
    plain = job(learned=saved(learned, llama, tmp_path / "plain"), writes=0).kv
    with writing_model(llama, {}, rank=2) as (_, lora):
        learned.lora = {name: tensor.detach() + 0.1 for name, tensor in lora.items()}
    path = saved(learned, llama, tmp_path / "lora")
    start, memory = job(learned=path, writes=0).kv, job(learned=path)
    assert not torch.allclose(start.keys, plain.keys)
    ids = torch.tensor([tokenizer(text).input_ids])
    with frozen(llama):
        with torch.no_grad():
            prefix = prefill(llama, memory.prefix_ids)
        begun = {"keys": start.keys[None], "values": start.values[None]}
        written = write(llama, prefix, begun, ids, torch.ones_like(ids, dtype=torch.bool), [0.5]).memory
    torch.testing.assert_close(memory.kv.keys, written["keys"][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(memory.kv.values, written["values"][0], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_learned_from_is_refused(job, llama, tokenizer, text, tmp_path):
    learned = learned_of(llama, tokenizer(text).input_ids, "kv", tokens=3)
    path = saved(learned, llama, tmp_path / "short")
    with pytest.raises(lcc.InputError, match=r"starts memories of 3 tokens at most, and this one has \d+: raise"):
        job(learned=path)
    with pytest.raises(lcc.InputError, match="starts memories of the form 'kv': leave form out"):
        job(learned=path, form="embeddings")
    with pytest.raises(lcc.MemoryFileError, match=r"cannot read .*missing"):
        job(learned=str(tmp_path / "missing"))
    with pytest.raises(lcc.MismatchError, match="is not the file that it was"):
        job(learned=path, learned_digest="0")
    other = tiny_model("llama", initializer_range=0.5, hidden_size=48, intermediate_size=32)
    foreign = saved(learned_of(other, [3, 4, 5], "kv"), other, tmp_path / "foreign")
    with pytest.raises(lcc.MismatchError, match="was learned for another model"):
        job(learned=foreign)
    for settings in ({"writes": -1}, {"write_rate": -0.5}, {"form": "adapter"}):
        with pytest.raises(lcc.InputError, match=next(iter(settings))):
            job(**settings)
