"""Retrievers by vectors, and fused rankings."""

from __future__ import annotations

import pytest
import torch

import lcc
from lcc.bank.index import Hit
from lcc.bank.retrieval import FusedRetriever, Passages, VectorRetriever, WordRetriever
from lcc.bank.vectors import PassageVectors, sentence_encoder
from lcc.embedded_model import EMBEDDED
from lcc.modeling.prefill import prefill
from lcc.modeling.sentence_states import SentenceStates
from tests.support.tiny_models import tiny_model

PLACES = {"north": [0.0, 1.0], "east": [1.0, 0.0], "north-east": [0.6, 0.8]}


def encode(texts):
    return torch.tensor([PLACES[text] for text in texts])


def test_the_nearest_passage_of_each_document():
    passages = Passages(encode(PLACES), ("a", "b", "a"), tuple(PLACES), torch.ones(3).bool())
    retriever = VectorRetriever("places", encode, lambda: passages)
    assert [(hit.key, hit.passage) for hit in retriever.search("east", 2)] == [("b", "east"), ("a", "north-east")]
    assert [hit.passage for hit in retriever.search("east", 1, without="east")] == ["north-east"]
    assert retriever.search("east", 0) == FusedRetriever([retriever]).search("east", 0) == []


class Fixed:
    def __init__(self, name, *keys):
        self.name, self.keys = name, keys

    def search(self, query, k, without=None):
        return [Hit(key, 1.0, 0.5, f"{self.name} of {key}") for key in self.keys[:k]]


def test_ranks_are_fused():
    fused = FusedRetriever([Fixed("one", "a", "b", "c"), Fixed("two", "b", "d")])
    hits = fused.search("?", 3)
    assert [hit.key for hit in hits] == ["b", "a", "d"]
    assert hits[0].score == 1 / 62 + 1 / 61
    assert hits[0].passage == "one of b"
    # What is said to be nearest is what was found first, whatever the units of the retrievers.
    assert [hit.share for hit in hits] == sorted((hit.share for hit in hits), reverse=True)
    assert hits[0].share == pytest.approx(hits[0].score * 61 / 2)
    assert fused.name == "one+two"


def test_vectors_are_made_once_and_only_of_what_is_new(people):
    made = []

    def count(texts):
        made.extend(texts)
        return torch.nn.functional.normalize(torch.ones(len(texts), 4), dim=-1)

    vectors = PassageVectors(people, "ones", count)
    assert vectors().keys == ("mara", "mara", "timo")
    assert len(made) == 3
    assert len(PassageVectors(people, "ones", count)().bodies) == 3
    assert len(made) == 3  # of another object, from the index
    people.put("timo", people.memory("mara"))
    assert len(vectors().bodies) == 4
    assert made[3:] == list(vectors().bodies[2:])
    people.remove("timo", "mara")
    assert vectors().bodies == ()
    assert WordRetriever(people.search).search("Mara", 1) == []


def test_a_sentence_transformers_folder(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    words = modules.Transformer(str(EMBEDDED))
    words.tokenizer.pad_token = words.tokenizer.eos_token
    pooling = modules.Pooling(words.get_word_embedding_dimension())
    library.SentenceTransformer(modules=[words, pooling]).save(str(tmp_path))
    vectors = sentence_encoder(str(tmp_path))(["Where does Ada live?", "Where does Ada live?", "Add 3 and 4."])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    assert float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[2])
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(lcc.InputError, match="cannot load the retriever"):
        sentence_encoder(str(tmp_path))


def test_states_are_those_of_the_model(tokenizer):
    model = tiny_model("llama").double()
    before = prefill(model, [1, 2, 3])
    texts = [[5, 6, 7, 8], [9], [10, 11]]
    layers = (model.config.num_hidden_layers + 1) // 2
    for pooling in ("mean", "last"):
        states = SentenceStates(model, before, pooling).of(texts)
        for text, state in zip(texts, states, strict=True):
            output = model(torch.tensor([[1, 2, 3, *text]]), output_hidden_states=True)
            raw = output.hidden_states[layers][0, 3:]
            hidden = model.model.norm(raw) if layers < model.config.num_hidden_layers else raw
            pooled = hidden.mean(0) if pooling == "mean" else hidden[-1]
            torch.testing.assert_close(state, torch.nn.functional.normalize(pooled, dim=-1).float())
