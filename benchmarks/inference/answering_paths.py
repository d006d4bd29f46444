"""Four ways to answer questions about a text: from the text or a memory of it, held in copies or once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from transformers import DynamicCache

import lcc
from lcc.inference.reader import prefill_chat
from lcc.inference.requests import Request, answer
from lcc.modeling.generation import batch_inputs, generate_after
from lcc.modeling.kv import KV
from lcc.modeling.shared_cache import SharedCache
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat


@dataclass(frozen=True)
class Reader:
    """``answer(new tokens)`` gives the answers, from a cold start; ``cache`` does the same and gives the full cache."""

    answer: Callable[[int], list[str]]
    cache: Callable[[int], DynamicCache]


class Task:
    """A text of ``context`` tokens, questions about it, and a memory of it with random content."""

    def __init__(self, model: Any, tokenizer: Any, context: int, ratio: float, questions: int):
        self.model, self.tokenizer, self.chat = model, tokenizer, ChatFormat.of(tokenizer)
        doc = document(random.Random(0), 12, 8)
        ids = self.chat.ids(doc.text)
        self.text = tokenizer.decode((ids * ceil(context / len(ids)))[:context])
        self.questions = [question.text for question in doc.questions()][:questions]
        self.queries = [self.chat.query_ids(question) for question in self.questions]
        self.memory = random_memory(model, tokenizer, self.chat, len(self.chat.ids(self.text)), ratio)

    def readers(self) -> dict[str, Reader]:
        """What is measured first, ``lcc.ask`` last."""
        return {
            "text, copies": self._copying(self._read_text),
            "text, shared": self._sharing(self._read_text),
            "memory, copies": self._copying(self._read_memory),
            "memory, shared": Reader(self._ask, self._sharing(self._read_memory).cache),
        }

    def _read_text(self) -> KV:
        return prefill_chat(self.model, self.chat, self.text)

    def _read_memory(self) -> KV:
        return lcc.attach(self.model, self.memory, verify=False).kv()

    def _ask(self, new: int) -> list[str]:
        batch = len(self.questions)
        return lcc.ask(self.model, self.tokenizer, self.memory, self.questions, batch=batch, **fixed_length(new))

    def _sharing(self, read: Callable[[], KV]) -> Reader:
        def answers(new: int) -> list[str]:
            requests = [Request((question,), max_new_tokens=new) for question in self.questions]
            shared = answer(self.model, self.chat, read(), requests, len(requests), min_new_tokens=new)
            return [one.text for one in shared]

        def cache(new: int) -> SharedCache:
            held = SharedCache(read())
            generate_after(self.model, held, self.queries, self.chat.end, **fixed_length(new))
            return held

        return Reader(answers, cache)

    def _copying(self, read: Callable[[], KV]) -> Reader:
        """Transformers alone, with the attention that it takes by itself."""

        def generate(new: int) -> tuple[torch.Tensor, DynamicCache]:
            kv, cache = read(), DynamicCache(config=self.model.config)
            for layer, (keys, values) in enumerate(zip(kv.keys, kv.values, strict=True)):
                cache.update(keys[None], values[None], layer)
            cache.batch_repeat_interleave(len(self.queries))
            inputs = batch_inputs(len(kv), self.queries, self.chat.end, self.model.device)
            options = {"do_sample": False, "pad_token_id": self.chat.end, **fixed_length(new)}
            return self.model.generate(**inputs, past_key_values=cache, **options)[:, -new:], cache

        return Reader(
            lambda new: self.tokenizer.batch_decode(generate(new)[0], skip_special_tokens=True),
            lambda new: generate(new)[1],
        )


def fixed_length(new: int) -> dict[str, int]:
    return {"max_new_tokens": new, "min_new_tokens": new}


def random_memory(model: Any, tokenizer: Any, chat: ChatFormat, tokens: int, ratio: float) -> lcc.Memory:
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (config.num_hidden_layers, config.num_key_value_heads, ceil(tokens / ratio), width)
    keys, values = torch.randn(2, *shape, dtype=model.dtype, device=model.device)
    return lcc.Memory(
        payload=lcc.KVPayload(KV(keys, values)),
        prefix_ids=tuple(chat.prefix_ids),
        ratio=ratio,
        source_tokens=tokens,
        source_sha256="",
        rope=dict(config.rope_parameters),
        fingerprint=lcc.fingerprint(model, tokenizer),
        settings={},
    )


def storage_bytes(cache: DynamicCache) -> int:
    """Bytes of the storages that a cache keeps alive."""
    if isinstance(cache, SharedCache):
        return cache.nbytes
    storages = (tensor.untyped_storage() for layer in cache.layers for tensor in (layer.keys, layer.values))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
