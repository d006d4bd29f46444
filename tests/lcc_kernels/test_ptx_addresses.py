"""No index is multiplied by a stride in 32 bits, read from the PTX for a GPU that is not here."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from lcc_kernels.dispatch import interpreting

pytest.importorskip("triton")
STRIDES = {
    "linear_kl": r"\w+_stride",
    "attach_kv": r"(k|v|kc|vc|ks|vs|slot|cos|sin)_\w+",
    "shared_prefix": r"(q|sk|sv|k|v|bias)_(batch|head|row)",
}


@pytest.mark.slow
@pytest.mark.skipif(interpreting(), reason="the interpreter compiles nothing")
@pytest.mark.parametrize(
    ("op", "config", "counts"),
    [
        ("linear_kl", "90:bf16:forward:plain", set()),
        ("attach_kv", "90:128:bf16:i8:interleaved", {"group"}),
        ("shared_prefix", "90:128:bfloat16:64:every", {"batch", "group", "q_len"}),
    ],
)
def test_strides_are_multiplied_in_64_bits(op, config, counts):
    """``counts`` are numbers of rows or heads: products of them, which fit, show that the PTX is read right."""
    from tests.lcc_kernels.ahead_of_time import narrow_products

    built = import_module(f"tests.lcc_kernels.{op}.aot").compiled(config)
    strides = {name for name in built.src.signature if re.fullmatch(STRIDES[op], name)}
    narrow = narrow_products(built)
    assert strides
    assert not narrow & strides
    assert counts <= narrow
