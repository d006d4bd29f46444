"""The text to repeat, as a whole or piece by piece."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from lcc.compilers.lora import LoraMemory
from lcc.data import reconstruction
from lcc.data.pieces import consecutive_pieces
from lcc.data.reconstruction import repetitions
from lcc.data.settings import DataSettings
from lcc.errors import InputError
from lcc.modeling.lora import lora_model
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context
from lcc.text.prompts import REPEAT_REQUEST
from lcc.training.trainer import Trainer
from tests.support.tiny_models import make_data

SENTENCES = " ".join(f"Mara {word} a dog." for word in ("has", "likes", "sees", "keeps", "wants")) * 6


@pytest.fixture
def context(llama, tokenizer):
    return build_context(llama, tokenizer, SENTENCES, 8)


def test_pieces_are_the_text_in_order_and_whole_sentences(tokenizer):
    ids = tokenizer(SENTENCES, add_special_tokens=False).input_ids
    pieces = consecutive_pieces(tokenizer, ids, 40)
    assert [token for piece in pieces for token in piece] == ids
    assert len(pieces) == round(len(ids) / 40)
    assert all(tokenizer.decode(piece).rstrip().endswith(".") for piece in pieces)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 20
    assert consecutive_pieces(tokenizer, ids, 0) == consecutive_pieces(tokenizer, ids, 10**6) == [ids]


def test_every_piece_is_asked_for_by_its_first_words_and_the_last_one_ends(context):
    pieces = repetitions(context, DataSettings(reconstruction_piece=40))
    *before, last = pieces
    assert len(before) > 1
    assert tuple(token for piece in pieces for token in piece.response_ids) == (*context.context_ids, context.chat.end)
    assert last.response_ids[-1] == context.chat.end
    assert pieces[0].query == REPEAT_REQUEST
    for piece in pieces[1:]:
        first = context.chat.tokenizer.decode(piece.response_ids[: reconstruction.QUOTED]).strip()
        assert f'"{first}"' in piece.query
    assert len({piece.query_ids for piece in pieces}) == len(pieces)


def test_auto_is_the_whole_text_with_a_small_vocabulary(context, monkeypatch):
    [whole] = repetitions(context, DataSettings())
    assert whole == repetitions(context, DataSettings(reconstruction_piece=0))[0]
    assert whole.response_ids == (*context.context_ids, context.chat.end)
    monkeypatch.setattr(reconstruction, "has_words_for", lambda *_: True)
    monkeypatch.setattr(reconstruction, "PIECE", 40)
    assert len(repetitions(context, DataSettings())) > 2


def test_a_piece_is_no_negative_number():
    with pytest.raises(InputError, match="reconstruction_piece"):
        DataSettings(reconstruction_piece=-1)


def test_each_step_repeats_one_piece_and_none_twice_in_a_turn(llama, context):
    settings = make_settings(
        "fast", general_queries=2, self_study_questions=0, max_response_tokens=4, reconstruction_piece=40, rank=2,
        alpha=2.0, held_out=0.0,
    )  # fmt: skip
    data = make_data(llama, context, settings, ["Say: dog.", "Add 1 and 2."])
    assert all(len(piece.teacher_hidden) == len(piece.response_ids) for piece in data.reconstruction)
    count = len(data.reconstruction)
    with lora_model(llama, 2, 2.0) as layers:
        trainer = Trainer(
            LoraMemory(llama, context, layers), data, settings.training, settings.execution, settings.seed
        )
        drawn = []
        for trainer.step in range(6 * count):
            first, *queries = trainer._draw()
            assert {query.stream for query in queries} == {"general"}
            drawn.append(first.query)
        turns = [tuple(drawn[turn : turn + count]) for turn in range(0, len(drawn), count)]
        assert all(Counter(turn) == Counter(piece.query for piece in data.reconstruction) for turn in turns)
        assert len(set(turns)) > 1
        trainer.data = replace(data, reconstruction=data.reconstruction[:1])
        state = torch.get_rng_state()
        assert trainer._draw()[0] is data.reconstruction[0]
        assert torch.equal(state, torch.get_rng_state())
