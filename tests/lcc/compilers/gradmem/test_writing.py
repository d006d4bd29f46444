"""What holds of every write, whatever the model has learned."""

from __future__ import annotations

import pytest
import torch

from lcc.compilers.gradmem import writing
from lcc.compilers.gradmem.writing import memory_kv, no_prefix, predictions, token_losses
from lcc.modeling.kv import decoder
from lcc.modeling.shared_cache import SharedCache
from tests.lcc.compilers.gradmem.cases import FORMS, case, one_start


@pytest.fixture(params=FORMS)
def writes(request):
    with case(request.param) as made:
        yield made


def equal(one, other, **tolerances):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], **tolerances)


@pytest.mark.parametrize("rates", [[], [0.0], [0.0, 0.0]])
@pytest.mark.parametrize("grad_mode", ["none", "first", "second"])
def test_no_writes_and_no_step_leave_the_start(writes, rates, grad_mode):
    written = writes.write(rates, grad_mode)
    equal(written.memory, writes.start, rtol=0, atol=0)
    assert written.losses.shape == (len(rates), 3)


def test_a_write_is_a_gradient_step_of_each_texts_mean_loss(writes):
    start = {name: tensor.detach().clone().requires_grad_() for name, tensor in writes.only(1)["start"].items()}
    ids = writes.only(1)["ids"]
    loss = plain_loss(writes, start, ids)
    slopes = torch.autograd.grad(loss, list(start.values()))
    expected = {n: tensor - 0.7 * slope for (n, tensor), slope in zip(start.items(), slopes, strict=True)}
    written = writes.write([0.7])
    equal({name: tensor[1:2] for name, tensor in written.memory.items()}, expected)
    torch.testing.assert_close(written.losses[0, 1], loss)


def plain_loss(writes, memory, ids):
    """The loss as a transformers model gives it, of one text behind prefix and memory."""
    cache, model = SharedCache(writes.prefix), writes.model
    if "keys" in memory:
        kv = writing.KV(memory["keys"][0], memory["values"][0]).rotated(model, writes.prefix.end)
        cache, labels = SharedCache(kv.after(writes.prefix)), ids[:, 1:]
        inputs = model.get_input_embeddings()(ids)
    else:
        labels = ids
        inputs = torch.cat((memory["embeddings"], model.get_input_embeddings()(ids)), 1)
    hidden = decoder(model)(inputs_embeds=inputs, past_key_values=cache).last_hidden_state
    logits = model.lm_head(hidden)[:, -labels.shape[1] - 1 : -1]
    return -logits.log_softmax(-1).gather(2, labels[..., None]).mean()


def test_a_batch_is_a_loop(writes):
    together = writes.write([0.5, 0.3]).memory
    for row in range(3):
        alone = writes.write([0.5, 0.3], **writes.only(row)).memory
        equal({name: tensor[row : row + 1] for name, tensor in together.items()}, alone)


def test_padding_moves_nothing(writes):
    expected = writes.write([0.5, 0.3]).memory
    other = writes.ids.where(writes.counted, 17)
    equal(writes.write([0.5, 0.3], ids=other).memory, expected, rtol=0, atol=0)
    longer = {name: torch.nn.functional.pad(getattr(writes, name), (0, 4)) for name in ("ids", "counted")}
    equal(writes.write([0.5, 0.3], **longer).memory, expected)


def test_a_text_without_tokens_leaves_its_memory(writes):
    counted = writes.counted.clone()
    counted[1] = False
    written = writes.write([0.5], counted=counted).memory
    equal({n: t[1] for n, t in written.items()}, {n: t[1] for n, t in writes.start.items()}, rtol=0, atol=0)
    assert all(not torch.equal(tensor[0], writes.start[name][0]) for name, tensor in written.items())


def test_a_small_step_lowers_the_loss(writes):
    losses = writes.write([1e-3] * 6).losses
    assert (losses.diff(dim=0) < 0).all()


def test_no_mode_changes_what_is_written(writes):
    expected = writes.write([0.5, 0.3]).memory
    for grad_mode in ("first", "second"):
        equal(writes.write([0.5, 0.3], grad_mode).memory, expected)
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    written = writes.write([rate])
    assert not written.losses.requires_grad
    assert not any(tensor.requires_grad for tensor in written.memory.values())


def test_a_long_texts_logits_are_never_all_there(writes, monkeypatch):
    start, memories = one_start("kv" if "keys" in writes.start else "embeddings", 3, requires_grad=True)

    def slopes():
        written = writes.write([0.5], "second", start=memories)
        return torch.autograd.grad(writes.read_loss(written.memory), list(start.values()))

    expected, sizes = slopes(), []
    head = writes.model.get_output_embeddings()
    monkeypatch.setattr(writing, "LOGITS", 4 * head.weight.shape[0])
    hook = head.register_forward_hook(lambda _, inputs, out: sizes.append(len(out)))
    for one, other in zip(slopes(), expected, strict=True):
        torch.testing.assert_close(one, other)
    hook.remove()
    assert max(sizes) == 4


def test_readers_of_k_and_v_see_the_memory_that_was_written(writes):
    with torch.no_grad():
        memory = writes.write([0.5]).memory
        kv = memory_kv(writes.model, writes.prefix, {name: tensor[:1] for name, tensor in memory.items()})
        cache = SharedCache(kv.rotated(writes.model, writes.prefix.end).after(writes.prefix))
        seen = decoder(writes.model)(writes.reads[:1], past_key_values=cache).last_hidden_state
        logits = predictions(writes.model, writes.prefix, memory, writes.reads)
    torch.testing.assert_close(writes.model.lm_head(seen)[:, :-1], logits[:1, -5:])


def test_no_prefix_is_no_prefix(writes):
    memory = {name: tensor[:1] for name, tensor in one_start("embeddings", 1)[1].items()}
    loss = token_losses(writes.model, no_prefix(writes.model), memory, writes.ids[:1], writes.counted[:1])
    inputs = torch.cat((memory["embeddings"], writes.model.get_input_embeddings()(writes.ids[:1])), 1)
    logits = writes.model(inputs_embeds=inputs).logits[0, 2:-1]
    torch.testing.assert_close(loss[0], torch.nn.functional.cross_entropy(logits, writes.ids[0]))
