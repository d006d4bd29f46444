"""The benchmarks of small memories round as memories do, and their tables say what the rows say."""

from __future__ import annotations

import pytest
import torch

from benchmarks.compile import int4_forms, size_budget
from lcc.memory.payload import KVPayload
from lcc.memory.quantization import quantize_payload
from lcc.modeling.kv import KV


@pytest.fixture
def kv():
    generator = torch.Generator().manual_seed(0)
    return KV(*torch.randn(2, 3, 2, 70, 16, generator=generator))


def error(kv: KV, form: int4_forms.Form) -> float:
    rounded = form.rounded(kv)
    return float((rounded.keys - kv.keys).norm() + (rounded.values - kv.values).norm())


def test_the_form_that_is_kept_is_that_of_memories(kv):
    rounded = int4_forms.FORMS["kept"].rounded(kv)
    stored = quantize_payload(KVPayload(kv), "int4").numbers(torch.float32)
    assert torch.equal(rounded.keys, stored.keys)
    assert torch.equal(rounded.values, stored.values)


def test_finer_and_clipped_forms_are_nearer(kv):
    kept = error(kv, int4_forms.FORMS["kept"])
    for finer in ("keys: groups of 16", "keys: groups of 8", "values: two scales", "clipped"):
        assert error(kv, int4_forms.FORMS[finer]) < kept
    assert error(kv, int4_forms.FORMS["keys: one group"]) > kept


def test_a_rotation_spreads_what_stands_out(kv):
    assert torch.allclose(int4_forms.hadamard(16) @ int4_forms.hadamard(16), torch.eye(16), atol=1e-6)
    kv.values[..., 3] *= 50
    assert error(kv, int4_forms.FORMS["values rotated"]) < error(kv, int4_forms.FORMS["kept"])


def test_tables():
    row = {"people": 5, "seed": 0, "source_tokens": 10, "score": 0.5, "kl": 0.1, "kl_from_float": 0.01, "changed": 0.0}
    rows = [row | {"ratio": 4, "dtype": "int8", "kv_bytes": 40}, row | {"ratio": 8, "dtype": "int4", "kv_bytes": 10}]
    assert [line[:8] for line in size_budget.table(rows).splitlines()[2:]] == ["| int4 @", "| int8 @"]
    forms = [{"form": name, "self_study": 0.2 if name == "kept" else 0.1, "general": 0.3} for name in int4_forms.FORMS]
    assert "| clipped | 1 | 0.1 | 0.50 | 0.3 | 1.00 |" in int4_forms.table(forms)
