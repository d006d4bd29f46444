"""Attachments of any shape, layout, dtype and grouping write the right rows and no others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .attach_cases import BACKENDS, LAYOUTS, MAX_LEN, check

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
QUANTISED = [torch.int8, torch.float8_e4m3fn, torch.uint8]


@st.composite
def cases(draw):
    """Arguments of ``check``."""
    dtype = draw(st.sampled_from([*FLOATS, *QUANTISED]))
    interleaved = draw(st.booleans())
    step = 4 if dtype == torch.uint8 and not interleaved else 2  # of rotary_dim: a byte belongs to one half
    head_dim = draw(st.integers(step, 40)) // 2 * 2
    case = {
        "layout": draw(st.sampled_from(list(LAYOUTS))),
        "memory_dtype": dtype,
        "cache_dtype": draw(st.sampled_from(FLOATS)),
        "shape": (*draw(st.tuples(*[st.integers(1, 4)] * 2, st.integers(1, MAX_LEN))), head_dim),
        "rotary_dim": step * draw(st.integers(1, head_dim // step)),
        "interleaved": interleaved,
        "table_dtype": draw(st.sampled_from(FLOATS)),
    }
    if dtype in QUANTISED:
        divisors = [n for n in range(1, head_dim + 1) if head_dim % n == 0]
        case["key_group"] = draw(st.none() | st.integers(1, MAX_LEN + 2))
        case["value_groups"] = draw(st.none() | st.sampled_from(divisors))
    return case


@pytest.mark.parametrize("backend", BACKENDS)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), st.integers(0, 2**31))
def test_any_attachment(backend, case, seed):
    torch.manual_seed(seed)
    check(backend, **case)
