"""Starts that are made of the text: a batch's are those of its texts alone, whatever stands beside them."""

from __future__ import annotations

import pytest
import torch

from lcc.compilers.gradmem.starts import text_starts
from lcc.modeling.prefill import prefill
from tests.lcc.compilers.gradmem.cases import FORMS, case


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def test_a_batch_is_a_loop_and_padding_is_never_seen(form):
    with case(form) as made, torch.no_grad():
        together = text_starts(made.model, made.prefix, made.ids, made.counted, 3, form)
        other = made.ids.where(made.counted, 17)
        for name, tensor in text_starts(made.model, made.prefix, other, made.counted, 3, form).items():
            assert torch.equal(tensor, together[name])
        for row in range(3):
            text = made.only(row)
            alone = text_starts(made.model, made.prefix, text["ids"], text["counted"], 3, form)
            for name, tensor in alone.items():
                torch.testing.assert_close(together[name][row], tensor[0])


def test_a_start_ends_with_the_texts_last_token(form):
    with case(form) as made, torch.no_grad():
        for tokens, places in ((1, [4]), (2, [2, 4]), (3, [1, 3, 4]), (5, [0, 1, 2, 3, 4]), (7, [0, 1, 2, 2, 3, 4, 4])):
            start = text_starts(made.model, made.prefix, made.ids, made.counted, tokens, form)
            ids = made.only(1)["ids"][0]
            if form == "embeddings":
                expected = {"embeddings": made.model.get_input_embeddings()(ids[places])}
            else:
                read = prefill(made.model, ids.tolist(), made.prefix).tail(5).unrotated(made.model).select(places)
                expected = {"keys": read.keys, "values": read.values}
            for name, tensor in expected.items():
                torch.testing.assert_close(start[name][1], tensor)
