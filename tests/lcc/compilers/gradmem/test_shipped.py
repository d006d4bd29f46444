"""The package's own file for the embedded model: it is found, it is worth having, and no other model gets it."""

from __future__ import annotations

import hashlib
import random

import pytest
import torch

import lcc
from lcc.compilers.gradmem.compiler import SHIPPED
from lcc.compilers.gradmem.learned import FORMAT
from lcc.compilers.learning import is_for
from lcc.inference.reader import Reader
from lcc.modeling.prefill import prefill
from lcc.synthetic.people import document
from lcc.synthetic.seeds import DEMO
from lcc.text.chat_format import ChatFormat

# Shipped weights stay small.
MOST_BYTES = 2 << 20


@pytest.fixture
def compiled(embedded):
    def run(told, **options):
        return lcc.compile(*embedded, told, compiler="gradmem", ratio=8, certify=False, progress=False, **options)

    return run


def test_it_keeps_far_more_of_an_unseen_text_than_first_tokens(compiled, embedded):
    model, tokenizer = embedded
    told = document(random.Random(DEMO), people=5, attributes=4)
    chat, asked = ChatFormat.of(tokenizer), [question.text for question in told.questions()[::3]]
    said = Reader.of_text(model, chat, told.text).say(asked, 8)
    memories = {
        name: compiled(told.text, **options) for name, options in {"auto": {}, "plain": {"learned": "none"}}.items()
    }
    with torch.no_grad():
        first = chat.ids(told.text)[: memories["auto"].buffer_tokens]
        kept = Reader(model, chat, prefill(model, [*chat.prefix_ids, *first]))
    kls = {name: said.kl(Reader.of_memory(model, chat, memory)) for name, memory in memories.items()}
    assert kls["auto"] < 0.1 * min(said.kl(kept), kls["plain"])
    # Its writes were learned too, and a memory of any size starts from it.
    assert len(memories["auto"].curve) == 2
    assert compiled(told.text, writes=0).curve == []
    digest = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    assert memories["auto"].compiler == {"name": "gradmem", "weights": digest}
    assert memories["auto"].settings["learned"] == "auto"


def test_it_belongs_to_the_embedded_model_alone(compiled, embedded, llama, tokenizer, text):
    model, _ = embedded
    assert SHIPPED.stat().st_size < MOST_BYTES
    assert is_for(SHIPPED, FORMAT, model)
    options = {"compiler": "gradmem", "ratio": 8, "certify": False, "progress": False}
    plain, auto = (lcc.compile(llama, tokenizer, text, **options, **given) for given in ({"learned": "none"}, {}))
    assert torch.equal(plain.kv.keys, auto.kv.keys)
    with pytest.raises(lcc.MismatchError, match="was learned for another model"):
        lcc.compile(llama, tokenizer, text, **options, learned=str(SHIPPED))
    # The config is the same, and the weights are not.
    with torch.no_grad():
        model.lm_head.weight[5, 5] += 1
    assert not is_for(SHIPPED, FORMAT, model)
    # It is of K and V: whoever asks for embeddings gets them.
    assert torch.equal(
        compiled(text, form="embeddings").kv.keys, compiled(text, form="embeddings", learned="none").kv.keys
    )
