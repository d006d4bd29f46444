"""Rows behind different prefixes, read in one pass, predict what each predicts alone behind its own prefix."""

from __future__ import annotations

import math

import pytest
import torch

import lcc
import lcc_kernels as lk
from benchmarks.families import models as architectures
from lcc.modeling import row_cache
from lcc.modeling.architecture import supports_sharing
from lcc.modeling.decoding import Prompt
from lcc.modeling.first_tokens import LOGIT_ROWS, entropy_of, read_first
from lcc.modeling.generation import generate_after
from lcc.modeling.prefill import prefill
from lcc.modeling.shared_cache import SharedCache
from tests.support.tiny_models import TINY, tiny_model

END = 7
LONGEST = 9
LENGTHS = (3, 25, 1, 300, 12)
# Nobody sees prefix 2; several rows see one prefix, one of them twice; one query is longer than the others.
PROMPTS = [
    Prompt((30, 31, 32), prefix=3),
    Prompt((40,), prefix=0),
    Prompt(tuple(range(50, 70)), prefix=1),
    Prompt((30, 31, 32), prefix=1),
    Prompt((30, 31, 32), prefix=3),
    Prompt((33, 34), prefix=4),
]


def prefixes_of(model):
    with torch.no_grad():
        return [prefill(model, range(20 + number, 20 + number + length)) for number, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module", params=["llama", "qwen3", "phi3", "qwen2_moe"])
def model(request):
    """The last one cannot share: it attends to copies of all prefixes, most of them masked."""
    if request.param != "qwen2_moe":
        return tiny_model(request.param, torch.float64)
    model = architectures.FAMILIES["qwen2_moe"].model(torch.float64)
    assert not supports_sharing(model)
    return model


@pytest.fixture(scope="module")
def prefixes(model):
    return prefixes_of(model)


@torch.no_grad()
def alone(model, prefix, ids):
    """What the model's own pass says behind the prefix: the last hidden state and the logits."""
    positions = torch.arange(prefix.end, prefix.end + len(ids))[None]
    options = {"position_ids": positions, "output_hidden_states": True, "logits_to_keep": 1}
    run = model(torch.tensor([ids]), past_key_values=SharedCache(prefix), **options)
    return run.hidden_states[-1][0, -1], run.logits[0, -1]


def ends(token):
    return token % END == 0


def generated(model, prefix, ids):
    """What ``generate`` writes, cut at an end token."""
    written = generate_after(model, SharedCache(prefix), [ids], END, max_new_tokens=LONGEST)[0]
    return tuple(written[: next((at for at, token in enumerate(written) if ends(token)), None)])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("tokens", [4096, 8], ids=["one pass", "passes"])
def test_each_row_is_as_if_read_alone(model, prefixes, tokens, monkeypatch):
    monkeypatch.setattr(row_cache, "PREFILL_TOKENS", tokens)
    first = read_first(model, prefixes, PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        hidden, logits = alone(model, prefixes[prompt.prefix], prompt.ids)
        close(first.hidden[number], hidden)
        close(first.logits[number], logits)
        p = logits.softmax(-1)
        close(first.entropy[number], -(p * p.log()).sum())
    close(read_first(model, prefixes, PROMPTS, keep=False).hidden, first.hidden)


@pytest.mark.parametrize(
    ("chosen", "tokens"), [([3], 4096), ([5, 0], 4096), ([4, 0, 2, 1, 3, 5], 8)], ids=["one", "two", "all, in passes"]
)
def test_chosen_rows_go_on_as_if_alone(model, prefixes, chosen, tokens, monkeypatch):
    monkeypatch.setattr(row_cache, "PREFILL_TOKENS", tokens)
    first = read_first(model, prefixes, PROMPTS)
    expected = [generated(model, prefixes[PROMPTS[number].prefix], PROMPTS[number].ids) for number in chosen]
    for _ in range(2):
        assert first.go_on(chosen, ends, LONGEST) == expected
    assert first.go_on([], ends, LONGEST) == []


def test_equal_prompts_go_on_as_one(monkeypatch):
    """The model is the caller's own where one row is read: its attention stays as it is."""
    model = tiny_model("llama")
    monkeypatch.setattr("lcc.modeling.row_cache.attending", None)
    first = read_first(model, prefixes_of(model), [PROMPTS[0], PROMPTS[0]])
    one, other = first.go_on([1, 0], ends, LONGEST)
    assert one == other == first.go_on([0], ends, LONGEST)[0]


def test_rows_end_at_different_times(model, prefixes):
    first = read_first(model, prefixes, PROMPTS)
    lengths = {len(written) for written in first.go_on(range(len(PROMPTS)), ends, 40)}
    assert len(lengths) > 2


def test_one_row_has_the_bits_of_the_models_own_pass():
    """In float32, whatever other prefixes there are."""
    model = tiny_model("llama")
    prefixes = prefixes_of(model)
    for number in (0, 3):
        first = read_first(model, prefixes, [Prompt((30, 31, 32), prefix=number)])
        hidden, logits = alone(model, prefixes[number], (30, 31, 32))
        assert torch.equal(first.hidden[0], hidden)
        assert torch.equal(first.logits[0], logits)
        assert first.go_on([0], ends, LONGEST) == [generated(model, prefixes[number], (30, 31, 32))]


def test_a_prefix_is_held_once_and_seen_by_its_own_rows_alone(monkeypatch):
    model = tiny_model("llama", torch.float64)
    calls, op = [], lk.shared_prefix_attention

    def spy(q, shared_k, *rest, shared_lengths, shared_starts, **options):
        calls.append((shared_k.shape, shared_lengths.tolist(), shared_starts.tolist()))
        return op(q, shared_k, *rest, shared_lengths=shared_lengths, shared_starts=shared_starts, **options)

    monkeypatch.setattr(lk, "shared_prefix_attention", spy)
    read_first(model, prefixes_of(model), PROMPTS)
    # Prefix 2 is left out, and equal rows are read once.
    expected = ((2, 3 + 25 + 300 + 12, 12), [3, 25, 25, 300, 12], [0, 3, 3, 28, 328])
    assert calls == [expected] * TINY["num_hidden_layers"]


def test_parts_of_many_rows():
    rows = [(0, (1,) * length) for length in (3, 1, 2, 4096, 5000, 1, 1)]
    assert list(row_cache.parts_of(rows)) == [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 7)]
    assert list(row_cache.parts_of(rows[:3], 2)) == [slice(0, 2), slice(2, 3)]
    assert list(row_cache.parts_of([])) == []


def test_models_that_cannot_share_read_as_many_rows_as_hold_few_copies(monkeypatch):
    model = architectures.FAMILIES["qwen2_moe"].model()
    whole, sizes = read_first(model, prefixes_of(model), PROMPTS), []
    monkeypatch.setattr("lcc.modeling.generation.CACHED_TOKENS", 2 * (3 + 25 + 300 + 12))
    refill = row_cache.RowCache.refill

    def counted(cache, kept, rows):
        sizes.append(len(rows))
        return refill(cache, kept, rows)

    monkeypatch.setattr(row_cache.RowCache, "refill", counted)
    torch.testing.assert_close(read_first(model, prefixes_of(model), PROMPTS).logits, whole.logits, rtol=0, atol=1e-4)
    assert sizes == [2, 2, 1]


def test_prefixes_at_other_positions():
    """A row goes on at its own prefix's end."""
    model = tiny_model("llama", torch.float64)
    with torch.no_grad():
        moved = [prefill(model, range(20, 30), start=5), prefill(model, range(20, 45), start=70)]
    first = read_first(model, moved, [Prompt((30, 31), prefix=number) for number in (1, 0)])
    for row, prefix in zip(first.hidden, reversed(moved), strict=True):
        close(row, alone(model, prefix, (30, 31))[0])


def test_what_goes_in_circles_goes_on(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr("lcc.modeling.decoding.goes_in_circles", lambda ids: True)
    first = read_first(model, prefixes_of(model), PROMPTS)
    assert [len(written) for written in first.go_on(range(6), lambda _: False, LONGEST)] == [LONGEST] * 6


def test_entropy():
    even, sure = torch.zeros(803, dtype=torch.float16), torch.full((803,), -math.inf)
    sure[5] = 1.0
    assert entropy_of(even).dtype == torch.float32
    assert entropy_of(even).item() == pytest.approx(math.log(803))
    assert entropy_of(torch.stack([sure, even.float()])).tolist() == pytest.approx([0.0, math.log(803)])
    assert entropy_of(torch.tensor([0.0, math.nan])).isnan()


def test_many_rows_have_the_entropies_of_few():
    model = tiny_model("llama", torch.float64)
    prompts = [Prompt((10 + number,), prefix=number % 2) for number in range(LOGIT_ROWS + 3)]
    first = read_first(model, prefixes_of(model), prompts)
    close(first.entropy, entropy_of(first.logits))


def test_nan_in_one_prefix_stays_there():
    model = tiny_model("llama")
    prefixes = prefixes_of(model)
    prefixes[1].keys[1, 0, 5] = math.nan
    first = read_first(model, prefixes, PROMPTS)
    assert first.entropy.isnan().tolist() == [prompt.prefix == 1 for prompt in PROMPTS]


def test_refuses():
    model = tiny_model("llama")
    prefixes = prefixes_of(model)
    with pytest.raises(lcc.InputError, match="nothing to read"):
        read_first(model, prefixes, [])
    with pytest.raises(lcc.InputError, match="need a window of 1300 tokens"):
        read_first(model, prefixes, [Prompt((9,), prefix=0), Prompt((9,) * 1000, prefix=3)])
    with pytest.raises(lcc.InputError, match="need a window of 1303 tokens"):
        read_first(model, prefixes, PROMPTS).go_on([1, 0], ends, 1000)
    with pytest.raises(lcc.InputError, match="was not kept"):
        read_first(model, prefixes, PROMPTS, keep=False).go_on([0], ends, 1)
