"""Files with any metadata and the right digest, as docs/memory-format.md defines it, and metadata to put into them."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from lcc.memory.file_format import FORMAT

# A key that stands for none: what it is on is taken away.
GONE = object()
HOSTILE = st.sampled_from(
    ["\x1b[2J", "\x1b]52;c;eA==\x07", "\x9b31m", "\u202e", "[/red]", "[bold]", "\\[", ":bomb:", "\n", "a" * 999]
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([10**30, -(10**30), 10**307, 1e308, 2**63, 2**31]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=9), HOSTILE)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3))
)


def forge(path: Any, tensors: dict[str, torch.Tensor], metadata: Any, kind: str = FORMAT) -> None:
    """Write ``metadata``, whatever it is, with its digest."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    header = {"format": kind, "digest": digest.hexdigest(), "metadata": metadata}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"lcc": json.dumps(header)})


def places(value: Any, here: tuple = ()) -> list[tuple]:
    """The way to every part of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, part in parts for place in places(part, (*here, key)))]


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """``value`` with one to three of its parts taken away, or replaced by anything."""
    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        way = draw(st.sampled_from(places(found)))
        part = draw(st.one_of(st.just(GONE), ANYTHING, HOSTILE, NUMBERS))
        found = replaced(found, way, part)
    return found


def replaced(value: Any, way: tuple, part: Any) -> Any:
    """``value`` with ``part`` at the end of ``way``."""
    if not way:
        return {} if part is GONE else part
    held = value
    for key in way[:-1]:
        held = held[key]
    if part is GONE:
        del held[way[-1]]
    else:
        held[way[-1]] = part
    return value
