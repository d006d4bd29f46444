"""How a request names its memories."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcc.serving.api_errors import ApiError
from lcc.serving.naming import FIELDS, model_name, named_memories

BASE = "a/model:8b"


def refusal(body) -> ApiError:
    with pytest.raises(ApiError) as refused:
        named_memories(body, BASE)
    refused.value.body()
    str(refused.value).encode()
    return refused.value


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, ()),
        ({"model": BASE}, ()),
        ({"model": None, "memory": None, "memories": None, "cartridges": None, "kv_transfer_params": None}, ()),
        ({"memory": "a"}, ("a",)),
        ({"model": f"{BASE}:a"}, ("a",)),
        ({"model": f"{BASE}:a:b"}, ("a:b",)),
        ({"model": f"{BASE}:{BASE}"}, (BASE,)),
        ({"memories": ["b", "a"]}, ("b", "a")),
        ({"cartridges": [{"id": "b"}, {"id": "a", "source": "local", "force_redownload": False}]}, ("b", "a")),
        ({"kv_transfer_params": {}}, ()),
        ({"kv_transfer_params": {"memory": "a"}}, ("a",)),
        ({"kv_transfer_params": {"memories": ["a", "b"]}}, ("a", "b")),
        ({"model": f"{BASE}:a", "memory": "a", "memories": ["a"], "cartridges": [{"id": "a"}]}, ("a",)),
        ({"memory": "../ä %2e\n"}, ("../ä %2e\n",)),
    ],
)
def test_names(body, names):
    assert named_memories(body, BASE) == names


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"memory": ""}, "memory"),
        ({"memory": 1}, "memory"),
        ({"memory": ["a"]}, "memory"),
        ({"memory": math.nan}, "memory"),
        ({"memory": "\ud800"}, "memory"),
        ({"memories": []}, "memories"),
        ({"memories": "ab"}, "memories"),
        ({"memories": ["a", ""]}, "memories"),
        ({"memories": ["a", None]}, "memories"),
        ({"memories": {"a": 1}}, "memories"),
        ({"cartridges": ["a"]}, "cartridges"),
        ({"cartridges": [{}]}, "cartridges"),
        ({"cartridges": []}, "cartridges"),
        ({"cartridges": [{"id": "a", "source": "huggingface"}]}, "cartridges"),
        ({"kv_transfer_params": "a"}, "kv_transfer_params"),
        ({"kv_transfer_params": {"memory": "a", "do_remote_prefill": True}}, "kv_transfer_params"),
        ({"kv_transfer_params": {"memory": 5}}, "kv_transfer_params.memory"),
        ({"memory": "a", "memories": ["a", "b"]}, "memories"),
        ({"model": f"{BASE}:a", "memory": "b"}, "memory"),
        ({"memories": ["a", "b"], "cartridges": [{"id": "b"}, {"id": "a"}]}, "cartridges"),
        ({"model": 5}, "model"),
        ({"model": f"{BASE}:\ud800"}, "model"),
    ],
)
def test_what_names_none(body, param):
    error = refusal(body)
    assert (error.status, error.param) == (400, param)


@pytest.mark.parametrize("model", ["", "b", f"{BASE}:", f"{BASE}x", BASE.upper(), f" {BASE}"])
def test_another_model_is_not_found(model):
    error = refusal({"model": model})
    assert (error.status, error.param) == (404, "model")


def test_a_name_as_a_model_is_read_back():
    for name in ("a", "a:b", "ä", " "):
        assert named_memories({"model": model_name(BASE, name)}, BASE) == (name,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(("model", *FIELDS)), JSON))
def test_any_body_gives_names_or_a_refusal(body):
    try:
        names = named_memories(body, BASE)
    except ApiError as error:
        names = ()
        str(error).encode()
    assert all(isinstance(name, str) and name for name in names)
