"""What changes a tokenizer's fingerprint, and what must not."""

from __future__ import annotations

import copy

import pytest
from tokenizers.normalizers import Lowercase
from tokenizers.processors import TemplateProcessing

from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.modeling.fingerprint import differing, tokenizer_fingerprint


def padding(tokenizer):
    tokenizer.padding_side, tokenizer.pad_token, tokenizer.model_max_length = "left", tokenizer.eos_token, 7
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)


def adding_bos(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
    )


def adding_a_word(tokenizer):
    tokenizer.add_tokens(["extraordinary"])


def adding_a_special_token(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})


def lowering(tokenizer):
    tokenizer.backend_tokenizer.normalizer = Lowercase()


@pytest.mark.parametrize("change", [padding, adding_bos, copy.deepcopy])
def test_how_a_tokenizer_is_called_does_not_count(change, tokenizer):
    changed = build_tokenizer()
    change(changed)
    assert tokenizer_fingerprint(changed) == tokenizer_fingerprint(tokenizer)


@pytest.mark.parametrize("change", [adding_a_word, adding_a_special_token, lowering])
def test_what_a_tokenizer_makes_of_a_text_counts(change, tokenizer):
    changed = build_tokenizer()
    change(changed)
    assert differing(tokenizer_fingerprint(changed), tokenizer_fingerprint(tokenizer)) == ["tokenizer"]
