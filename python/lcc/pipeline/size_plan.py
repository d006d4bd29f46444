"""``max_bytes="1MB"``: which ratio and dtype so many bytes are spent on."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..compilers.base import Compiler
from ..errors import InputError
from ..memory.codes import FORMATS, kv_bytes
from ..utils.values import parse_bytes

# The smallest ratio that is chosen. Smaller ones keep hardly more, see docs/how-to/phone.md.
LEAST_RATIO = 4.0
# The formats that follow the model's own dtype when the bytes are too few. The last one takes any ratio.
SMALLER = ("int8", "int4")
# The fewest buffer tokens: a text has at least two tokens for each ratio.
FEWEST = 2


@dataclass(frozen=True)
class SizePlan:
    """What a memory is compiled at.

    Attributes:
        dtype: a format of ``lcc.quantize``; None: the model's own dtype.
    """

    ratio: float
    dtype: str | None

    @classmethod
    def of(cls, room: int, tokens: int, shape: tuple[int, int, int], dtype: torch.dtype) -> SizePlan:
        """The rule: ``LEAST_RATIO`` in the widest dtype that fits, or else int4 at the smallest ratio that fits.

        Halving the ratio of an int4 memory keeps more than widening it to int8, in as many bytes; and int4 costs far
        less than the memory has lost of the text at any of these ratios.

        Args:
            room: bytes for K, V and their scales.
            tokens: of the text.
            shape: (layers, kv_heads, head_dim) of the model.
            dtype: of the model.

        Raises:
            InputError: there is not even room for two buffer tokens.
        """
        layers, heads, width = shape
        most = math.ceil(tokens / LEAST_RATIO)

        def size(buffer: int, form: str | None) -> int:
            return kv_bytes((layers, heads, buffer, width), dtype if form is None else FORMATS[form])

        forms = [None, *(form for form in SMALLER if width % 2 == 0 or not FORMATS[form].packed)]
        for form in forms:
            if size(most, form) <= room:
                return cls(LEAST_RATIO, form)
        fitting = bisect_right(range(1, most + 1), room, key=lambda buffer: size(buffer, forms[-1]))
        if fitting < FEWEST:
            raise InputError(
                f"{max(room, 0):,} bytes are left for K and V, and two buffer tokens of this model take "
                f"{size(FEWEST, forms[-1]):,} as {forms[-1]}: raise max_bytes by {size(FEWEST, forms[-1]) - room:,}"
            )
        return cls(_ratio(tokens, fitting), forms[-1])


def size_limit(given: int | str, settings: Mapping[str, Any], compiler: Compiler, timed: bool, started: bool) -> int:
    """The bytes of ``max_bytes``, if it goes with the other options.

    Raises:
        InputError: it is no size, or saying which option it does not go with.
    """
    limit = parse_bytes("max_bytes", given)
    if settings.get("ratio") is not None:
        raise InputError("max_bytes chooses the ratio: leave one of the two out")
    if timed:
        raise InputError("a budget makes memories of one ratio, and max_bytes chooses it: leave one of the two out")
    if started:
        raise InputError("max_bytes chooses the ratio, and start has one: leave one of the two out")
    if not getattr(compiler, "by_ratio", True):
        raise InputError(f"the compiler {compiler.name!r} makes no buffer tokens: max_bytes has nothing to choose")
    return limit


def _ratio(tokens: int, buffer: int) -> float:
    """The smallest ratio of two decimals at which a text has ``buffer`` buffer tokens at most."""
    hundredths = math.ceil(100 * tokens / buffer)
    while math.ceil(tokens / (hundredths / 100)) > buffer:
        hundredths += 1
    return hundredths / 100
