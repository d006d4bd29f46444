"""``direct_kv`` trained at the places that it would have among distractors, without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from transformers import PreTrainedModel

from lcc.compilers.direct_kv import DirectKV, DirectKVCompiler, DirectKVSettings
from lcc.modeling.kv import KV
from lcc.text.context import Context
from lcc.training.distractors import ISOLATED, Distractors


class ElsewhereKV(DirectKV):
    """As far from the prefix, and from the queries, as among distractors, which nobody sees."""

    def visible(self, buffer: KV, keep_prefix: bool, distractors: Distractors = ISOLATED) -> KV:
        """[P' | B] with gaps in their positions.

        Queries stand right behind as many positions as there are tokens. So the gaps open to the left, where positions
        are below zero: rotary attention knows distances alone.
        """
        if not distractors or not keep_prefix:
            return super().visible(buffer, keep_prefix)
        behind = sum(len(one.kv) for one in distractors.behind)
        prefix = self.prefix.moved(self.model, -len(distractors))
        own = buffer.rotated(self.model, len(self.prefix) - behind)
        moved = KV(own.keys, own.values, prefix.end).after(prefix)
        return KV(moved.keys, moved.values, 0)


class ElsewhereCompiler(DirectKVCompiler):
    """Trains ``ElsewhereKV``."""

    name: ClassVar[str] = "elsewhere"

    @contextmanager
    def trainable(
        self, model: PreTrainedModel, context: Context, settings: DirectKVSettings, seed: int
    ) -> Iterator[ElsewhereKV]:
        """Fresh K and V."""
        with super().trainable(model, context, settings, seed):
            yield ElsewhereKV(model, context, settings)
