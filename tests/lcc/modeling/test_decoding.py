"""Continuous batching writes what the model writes for each prompt alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import lcc
from lcc.modeling import decoding, row_cache
from lcc.modeling.decoding import CIRCLE, PERIOD, Prompt, Sampling, decode, goes_in_circles
from lcc.modeling.generation import generate_after
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import Completion, completion_states
from lcc.modeling.shared_cache import SharedCache
from tests.support.tiny_models import tiny_model

END = 7
LONGEST = 9


@pytest.fixture(scope="module", params=["llama", "qwen3", "phi3"])
def model(request):
    return tiny_model(request.param, torch.float64)


@pytest.fixture(scope="module")
def seen(model):
    with torch.no_grad():
        return prefill(model, range(20, 45))


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(0)
    drawn = [tuple(rng.randrange(10, 200) for _ in range(rng.randrange(1, 14))) for _ in range(23)]
    drawn[5:9] = drawn[:1] * 4
    return [Prompt(ids, key=str(number)) for number, ids in enumerate(drawn)]


def ends(token: int) -> bool:
    return token % END == 0


def written(model, seen, prompts, sampling=None, rows=None):
    found = dict(decode(model, seen, prompts, ends, LONGEST, sampling, rows))
    assert sorted(found) == list(range(len(prompts)))
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("sampling", [None, Sampling(3.0, "seed")], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [2, 5, 64])
def test_a_batch_writes_what_each_prompt_gets_alone(model, seen, prompts, sampling, rows):
    together = written(model, seen, prompts, sampling, rows)
    alone = [written(model, seen, [prompt], sampling)[0] for prompt in prompts]
    assert [each.ids for each in together] == [each.ids for each in alone]
    assert [each.end for each in together] == [each.end for each in alone]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.states, other.states, rtol=0, atol=1e-9)
    assert {True, False} == {each.end is None for each in together}
    assert {len(each.ids) for each in together} >= {0, LONGEST}


def test_it_is_what_generate_writes(model, seen, prompts):
    queries = [prompt.ids for prompt in prompts]
    texts = generate_after(model, SharedCache(seen), queries, END, max_new_tokens=LONGEST)
    for decoded, expected in zip(written(model, seen, prompts), texts, strict=True):
        assert expected[: len(decoded.ids)] == list(decoded.ids)


def test_states_are_those_of_reading_the_response(model, seen, prompts):
    found = written(model, seen, prompts, rows=4)
    completions = [Completion(p.ids, (*each.ids, END)) for p, each in zip(prompts, found, strict=True)]
    with torch.no_grad():
        expected = completion_states(model, seen, completions)
    torch.testing.assert_close(torch.cat([each.states for each in found]), expected, rtol=0, atol=1e-9)


def test_what_is_begun_is_gone_on_with(model, seen, prompts):
    """The first tokens are given; what follows is what the model writes after prompt and given tokens."""
    begun = (30, 28)
    given = [Prompt(prompt.ids, begun) for prompt in prompts]
    expected = written(model, seen, [Prompt((*prompt.ids, *begun)) for prompt in prompts])
    for one, other in zip(written(model, seen, given, rows=5), expected, strict=True):
        assert one.ids[:2] == begun
        assert one.ids[2:] == other.ids[: LONGEST - 2]
        torch.testing.assert_close(one.states[2:], other.states[: len(one.states) - 2], rtol=0, atol=1e-9)


def test_circles():
    assert not goes_in_circles(list(range(40)))
    assert goes_in_circles([1, 2, *[5] * (CIRCLE + 1)])
    assert not goes_in_circles([1, 2, *[5] * CIRCLE])
    assert goes_in_circles([9, *[1, 2, 3, 4] * 4])
    assert not goes_in_circles([9, *[1, 2, 3, 4] * 3])
    assert goes_in_circles([*range(PERIOD), *range(PERIOD)])
    assert not goes_in_circles([*range(PERIOD + 1), *range(PERIOD + 1)])


def test_what_goes_in_circles_is_cut_off(model, seen, prompts, monkeypatch):
    monkeypatch.setattr(decoding, "goes_in_circles", lambda ids: len(ids) == 3)
    whole = written(model, seen, [Prompt(p.ids) for p in prompts], rows=4)
    assert max(len(each.ids) for each in whole) == 3
    assert any(each.end is None for each in whole)
    assert all(len(each.states) == len(each.ids) + 1 for each in whole)


def test_draws_follow_the_key(model, seen, prompts):
    same = [Prompt(prompts[0].ids, key=str(key)) for key in (1, 2, 1)]
    first, second, again = (each.ids for each in written(model, seen, same, Sampling(5.0, "seed")))
    assert first == again != second
    assert written(model, seen, same[:1], Sampling(5.0, "other"))[0].ids != first


def test_draws_have_the_models_probabilities(model, seen, prompts):
    sampling, many = Sampling(2.0, "seed"), [Prompt(prompts[0].ids, key=str(key)) for key in range(2000)]
    found = [each for _, each in decode(model, seen, many, lambda token: False, 1, sampling, len(many))]
    with torch.no_grad():
        expected = (model.get_output_embeddings()(found[0].states[0]) / sampling.temperature).softmax(-1)
    counts = torch.bincount(torch.tensor([each.ids[0] for each in found]), minlength=len(expected)) / len(many)
    likely = expected.argsort(descending=True)[:100]
    torch.testing.assert_close(counts[likely].sum(), expected[likely].sum().float(), rtol=0, atol=0.05)
    torch.testing.assert_close(counts[likely[:5]], expected[likely[:5]].float(), rtol=0, atol=0.03)


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("rows", [3, 64])
def test_prompts_behind_different_prefixes(model, seen, prompts, rows, shares, monkeypatch):
    """Prefixes of other lengths, that of one prompt unseen by all others; equal queries behind different ones."""
    monkeypatch.setattr(decoding, "supports_sharing", lambda _: shares)
    with torch.no_grad():
        prefixes = [seen, prefill(model, range(60, 64)), prefill(model, range(7, 90))]
    mixed = [replace(prompt, prefix=number % 2 + (number == 6)) for number, prompt in enumerate(prompts)]
    together = written(model, prefixes, mixed, rows=rows)
    alone = [written(model, prefixes[each.prefix], [replace(each, prefix=0)])[0] for each in mixed]
    assert [each.ids for each in together] == [each.ids for each in alone]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.states, other.states, rtol=0, atol=1e-9)


def test_models_that_cannot_share(model, seen, prompts, monkeypatch):
    together = written(model, seen, prompts)
    monkeypatch.setattr(decoding, "supports_sharing", lambda _: False)
    assert [each.ids for each in written(model, seen, prompts, rows=5)] == [each.ids for each in together]


def test_prompts_are_read_a_few_at_a_time(model, seen, prompts, monkeypatch):
    together = written(model, seen, prompts)
    monkeypatch.setattr(row_cache, "PREFILL_TOKENS", 20)
    assert [each.ids for each in written(model, seen, prompts)] == [each.ids for each in together]


def test_nothing_to_write(model, seen):
    assert list(decode(model, seen, [], ends, LONGEST)) == []


def test_a_prompt_beyond_the_window(model, seen):
    with pytest.raises(lcc.InputError, match="need a window of"):
        list(decode(model, seen, [Prompt((9,) * 1000)], ends, LONGEST))
