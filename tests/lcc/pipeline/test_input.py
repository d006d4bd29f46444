"""Bad input is refused with its cause and its remedy."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

import lcc
from lcc.text.chat_format import ChatFormat
from lcc.text.queries import load_queries
from tests.support.tiny_models import tiny_model


def refuse(model, tokenizer, text, message, **settings):
    with pytest.raises(lcc.InputError, match=message):
        lcc.compile(model, tokenizer, text, progress=False, **settings)


def test_texts(llama, tokenizer, text):
    refuse(llama, tokenizer, "", "empty")
    refuse(llama, tokenizer, " \n ", "empty")
    refuse(llama, tokenizer, "Mara plays.", "too few for ratio 16")
    refuse(llama, tokenizer, text * 10, "need a window", section_tokens=0)


def test_a_text_over_a_change_of_rope(tokenizer, text):
    model = tiny_model("longrope")
    turn = model.config.rope_parameters["original_max_position_embeddings"]
    refuse(model, tokenizer, f"{text} {text}", f"another one from {turn} on")


def test_settings(llama, tokenizer, text):
    refuse(llama, tokenizer, text, "ratio is 0.5", ratio=0.5)
    refuse(llama, tokenizer, text, "ratio is inf", ratio=float("inf"))
    refuse(tiny_model("llama", torch.float16), tokenizer, text, "the model is float16", precision="bfloat16")
    refuse(llama, tokenizer, text, "steps is 0", steps=0)
    refuse(llama, tokenizer, text, "steps is True", steps=True)
    refuse(llama, tokenizer, text, "checkpoint_every is 0", checkpoint_every=0)
    refuse(llama, tokenizer, text, "checkpoint_every is 1.5", checkpoint_every=1.5)
    refuse(llama, tokenizer, text, "target is x", ratio="auto", target="x")
    refuse(llama, tokenizer, text, "learning_rate is inf", learning_rate=float("inf"))
    refuse(llama, tokenizer, text, "gradient_checkpointing is 1", gradient_checkpointing=1)
    refuse(llama, tokenizer, text, "targets is q_proj", targets="q_proj")
    refuse(llama, tokenizer, text, "unknown setting 'stepz'", stepz=3)
    refuse(llama, tokenizer, text, "unknown recipe", recipe="soup")
    refuse(llama, tokenizer, text, "loss is l1", loss="l1")
    shares = "self_study_hard and self_study_follow_ups is"
    refuse(llama, tokenizer, text, shares, self_study_hard=0.7, self_study_follow_ups=0.4)
    refuse(llama, tokenizer, text, shares, self_study_hard=0.0, self_study_follow_ups=1.0)
    refuse(llama, tokenizer, text, "stream weights", reconstruction_weight=0, general_weight=0, self_study_weight=0)
    refuse(
        llama, tokenizer, text, "no sample to train on",
        reconstruction_weight=0, general_queries=0, self_study_questions=0,
    )  # fmt: skip
    refuse(llama, tokenizer, text, "cannot carry a LoRA", targets=("nothing",))


def foreign_tokenizer(size: int, template: str | None = "{% for m in messages %}{{ m.content }}!{% endfor %}"):
    words = {f"w{index}": index for index in range(size)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w7", chat_template=template
    )


def test_tokenizers(llama, tokenizer, text):
    refuse(llama, foreign_tokenizer(10_000), text, "not the model's own")
    refuse(llama, foreign_tokenizer(100), text, "not the model's own")
    refuse(llama, foreign_tokenizer(len(tokenizer)), text, "eos_token_id is 7")


def test_chat_templates(llama, text):
    from lcc.embedded_model.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    refuse(llama, tokenizer, text, "no chat template")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper | replace('S', 'z') }}{% endfor %}"
    refuse(llama, tokenizer, text, "write messages as they are")
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|end|>{% endfor %}"
    refuse(llama, tokenizer, text, "no token before the user's words")


def test_a_template_without_system_turn_is_used_without_one(tokenizer):
    from lcc.embedded_model.tokenizer import build_tokenizer

    strict = build_tokenizer()
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tokenizer.chat_template
    )
    assert ChatFormat.of(strict).prefix == "<|bos|><|user|>"


def test_models(tokenizer, text):
    windowed = tiny_model("mistral")
    windowed.config.sliding_window = 16
    refuse(windowed, tokenizer, text, "hides tokens by more than causality")


def test_queries(tmp_path):
    assert len(load_queries()) == 600
    path = tmp_path / "queries.jsonl"
    path.write_text('{"instruction": "Say: dog."}\n\n{"query": "Add 1 and 2."}\n{"other": 1}\n')
    assert load_queries(path) == ["Say: dog.", "Add 1 and 2."]
    path.write_text('{"query": ')
    with pytest.raises(lcc.InputError, match="line 1 is not JSON"):
        load_queries(path)
    with pytest.raises(lcc.InputError, match="half of a surrogate pair"):
        load_queries(["Say: \ud800"])
    path.write_text("")
    with pytest.raises(lcc.InputError, match="no queries"):
        load_queries(path)
    with pytest.raises(lcc.InputError, match="no file"):
        load_queries(tmp_path / "absent.jsonl")


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(llama, tokenizer, monkeypatch):
    """A tokenizer that has begun heeds no interrupt."""
    monkeypatch.setattr(ChatFormat, "ids", lambda *_: pytest.fail("it is tokenised"))
    refuse(llama, tokenizer, "Mara lives in Tarn. " * 100_000, "2000000 characters, too many for a window of 1024")
