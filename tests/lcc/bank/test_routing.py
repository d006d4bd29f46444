"""Routers: what they prefer, what they learn, and what a file keeps of them."""

from __future__ import annotations

import json
import random

import pytest
import torch

import lcc
from lcc.bank.neighbors import NOBODY, Neighborhood, conformal_gate, neighborhood
from lcc.bank.retrieval import Passages, VectorRetriever
from lcc.bank.router_file import FORMAT, load_trained, save_trained
from lcc.bank.router_training import Examples, train
from lcc.bank.routing import Asked, FirstTokenRouter, NeighborRouter, ScoreRouter, accuracy
from lcc.bank.signals import Candidate, candidates, divergences
from lcc.utils.safe_json import finite_json
from lcc.utils.tensor_files import save_tensors


def candidate(key, similarity=0.5, entropy=1.0, divergence=1.0, likeness=0.5):
    return Candidate(key, similarity, entropy, divergence, torch.zeros(4), likeness)


def questions(count, seed=0):
    """Of three candidates the one with the lowest entropy is right, whatever the retriever says."""
    rng = random.Random(seed)
    asked = []
    for _ in range(count):
        gold = rng.randrange(3)
        some = [candidate(str(n), rng.random(), 0.1 if n == gold else 1 + rng.random()) for n in range(3)]
        asked.append(Asked(tuple(some), gold, NOBODY))
    return asked


@pytest.mark.parametrize("form", ["linear", "cdlm"])
def test_it_learns_what_the_retriever_does_not_know(form):
    router = FirstTokenRouter.train(form, questions(60), questions(20, 1))
    unseen = questions(50, 2)
    assert accuracy(router, unseen) == 1.0
    assert accuracy(ScoreRouter(), unseen) < 0.6
    again = FirstTokenRouter.of(form, router.tensors())
    assert [again.scores(one.candidates, NOBODY) for one in unseen] == [
        router.scores(one.candidates, NOBODY) for one in unseen
    ]
    assert router.scores((), NOBODY) == []


def test_what_it_cannot_learn_from_and_what_is_no_router():
    lost = [Asked((candidate("a"),), None, NOBODY)]
    with pytest.raises(lcc.InputError, match="nothing to learn"):
        FirstTokenRouter.train("linear", lost, lost)
    whole = FirstTokenRouter.train("linear", questions(8), questions(8, 1)).tensors()
    for broken in (
        {"mean": torch.zeros(3)},
        {name: tensor * torch.nan for name, tensor in whole.items()},
        {name: tensor.double() for name, tensor in whole.items()},
        whole | {"deviation": torch.ones(3)},
        {"mean": torch.ones(5), "deviation": torch.ones(5), "0.weight": torch.ones(1, 5), "0.bias": torch.ones(1)},
    ):
        with pytest.raises(lcc.MemoryFileError, match="none of a router"):
            FirstTokenRouter.of("linear", broken)
    assert accuracy(ScoreRouter(), lost) is None


def test_neighbors_vote_and_the_similarity_decides_a_tie():
    around = Neighborhood({"a": 0.4, "b": 0.4, "c": 0.2}, {})
    scores = NeighborRouter().scores([candidate("a", 0.1), candidate("b", 0.9), candidate("c", 1.0)], around)
    assert scores[1] > scores[0] > scores[2]


def passages():
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]]), dim=-1)
    return Passages(vectors, ("a", "b", "b", "c"), ("one", "two", "three", "a text"), torch.tensor([1, 1, 1, 0]).bool())


def test_the_neighborhood_of_a_question():
    around = neighborhood(passages(), torch.tensor([1.0, 0.0]))
    assert around.votes == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}
    assert (around.of("a"), around.of("c")) == (1.0, -1.0)  # a text is no question
    assert around.of("b") == pytest.approx(0.995, abs=1e-3)
    assert neighborhood(passages(), torch.tensor([1.0, 0.0]), without="one").votes == {"b": 1.0}
    assert neighborhood(Passages(torch.empty(0, 2), (), (), torch.empty(0).bool()), torch.ones(2)) == NOBODY


def test_a_conformal_gate_refuses_no_more_than_it_may():
    likeness = [number / 100 for number in range(99)]
    gate = conformal_gate(likeness, 0.05)
    assert sum(not gate.accepts(value) for value in likeness) == 5
    assert all(map(conformal_gate(likeness[:3]).accepts, likeness))


def test_signals_are_those_of_the_distributions():
    torch.manual_seed(0)
    logits, base = torch.randn(3, 7), torch.randn(7)
    p, q = logits.double().softmax(-1), base.double().softmax(-1)
    torch.testing.assert_close(divergences(logits, base), (q * (q / p).log()).sum(-1))
    assert float(divergences(base[None], base)) == pytest.approx(0, abs=1e-9)
    first, *_ = candidates(["a", "b", "c"], [0.3, 0.2, 0.1], logits, torch.randn(3, 4), base)
    assert (first.key, first.similarity) == ("a", 0.3)
    assert first.entropy == pytest.approx(float(-(p[0] * p[0].log()).sum()))
    never = torch.tensor([0.0, -torch.inf, 1.0])  # a token that cannot come, in either
    assert float(divergences(never[None], never)) == pytest.approx(0, abs=1e-9)


def trained():
    examples = Examples(*(tuple(questions(40, seed)) for seed in (0, 1, 2)))
    return train(examples, Examples(*(tuple(questions(30, seed)) for seed in (3, 4, 5))))


def test_a_file_that_is_no_whole_router_is_told_and_replaced(tmp_path):
    path, whole = tmp_path / "router.safetensors", trained()
    made_with = {"retriever": "bm25", "candidates": 5, "model": "a model"}
    metadata = json.loads(json.dumps(finite_json(whole.to_dict()))) | {"made_with": made_with}
    for broken in (
        {"gates": {}},
        {"made_with": {}},
        {"made_with": []},
        {"conformal": {"signal": "mood", "threshold": 1.0}},
        {"gates": metadata["gates"] | {"score": metadata["gates"]["score"] | {"roc": [[1]]}}},
    ):
        save_tensors(path, FORMAT, whole.router.tensors(), metadata | broken)
        with pytest.raises(lcc.MemoryFileError, match=r"no whole router: .*; run lcc bank train-router again"):
            load_trained(path)
    path.write_bytes(b"")
    save_trained(path, whole, **made_with)
    assert load_trained(path)[0].to_dict() == whole.to_dict()


def test_vectors_find_nothing_in_a_bank_without_passages():
    none = Passages(torch.empty(0, 0), (), (), torch.empty(0, dtype=torch.bool))
    assert VectorRetriever("asking", lambda texts: torch.ones(len(texts), 4), lambda: none).search("Who?", 5) == []
