"""``max_bytes``: what the bytes are spent on, that the file keeps to them, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lcc
from lcc.memory.codes import FORMATS, kv_bytes
from lcc.memory.payload import KVPayload
from lcc.memory.quantization import quantize_payload
from lcc.modeling.kv import KV
from lcc.pipeline import size_budget
from lcc.pipeline.compile_to import compile_to, memory_output
from lcc.pipeline.options import CompileOptions, Run
from lcc.pipeline.size_plan import LEAST_RATIO, SizePlan
from lcc.utils.progress import Reporter
from lcc.utils.values import parse_bytes

SHAPE = (4, 2, 64)
PLENTY = 10**9


@pytest.fixture
def job(llama, tokenizer, text, fast):
    """Compile into so many bytes."""

    def run(max_bytes, **overrides):
        settings = {name: value for name, value in fast.items() if name != "ratio"} | {"certify": False} | overrides
        return lcc.compile(llama, tokenizer, text, max_bytes=max_bytes, **settings)

    return run


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("form", [torch.float32, torch.bfloat16, *FORMATS])
def test_bytes_are_known_before_there_is_a_memory(form, tokens):
    payload = KVPayload(KV(*torch.randn(2, 3, 2, tokens, 6)))
    payload = quantize_payload(payload, form) if form in FORMATS else payload.to("cpu", form)
    known = kv_bytes((3, 2, tokens, 6), FORMATS.get(form, form))
    assert known == sum(tensor.nbytes for tensor in payload.tensors().values())


def test_the_widest_dtype_that_fits_at_the_least_ratio():
    most = math.ceil(601 / LEAST_RATIO)
    for dtype, form in ((None, torch.float32), ("int8", FORMATS["int8"]), ("int4", FORMATS["int4"])):
        room = kv_bytes((4, 2, most, 64), form)
        assert SizePlan.of(room, 601, SHAPE, torch.float32) == SizePlan(LEAST_RATIO, dtype)
        assert SizePlan.of(room - 1, 601, SHAPE, torch.float32).dtype != dtype or dtype == "int4"
    assert SizePlan.of(room - 1, 601, SHAPE, torch.float32).ratio > LEAST_RATIO


def test_an_odd_head_dim_ends_at_int8():
    assert SizePlan.of(9_000, 601, (4, 2, 63), torch.float32).dtype == "int8"


@given(room=st.integers(1, 10**6), tokens=st.integers(4, 10**5), width=st.sampled_from([2, 6, 63, 64, 128]))
def test_as_many_tokens_as_fit(room, tokens, width):
    shape = (2, 2, width)

    def size(buffer, dtype):
        return kv_bytes((2, 2, buffer, width), torch.bfloat16 if dtype is None else FORMATS[dtype])

    smallest = size(2, "int8" if width % 2 else "int4")
    if room < smallest and size(math.ceil(tokens / LEAST_RATIO), "int4" if width % 2 == 0 else "int8") > room:
        with pytest.raises(lcc.InputError, match=f"raise max_bytes by {smallest - room:,}"):
            SizePlan.of(room, tokens, shape, torch.bfloat16)
        return
    plan = SizePlan.of(room, tokens, shape, torch.bfloat16)
    buffer = math.ceil(tokens / plan.ratio)
    assert size(buffer, plan.dtype) <= room
    assert tokens >= 2 * plan.ratio or plan.ratio == LEAST_RATIO
    if plan.ratio > LEAST_RATIO:
        # Two decimals of the ratio leave out a few tokens of many.
        assert size(buffer + 1 + buffer * 0.01 // plan.ratio, plan.dtype) > room


@pytest.mark.parametrize(
    ("given_text", "size"),
    [
        (5, 5),
        ("5", 5),
        ("5B", 5),
        ("300kB", 300_000),
        ("1MB", 10**6),
        (" 1.5 mb ", 1_500_000),
        ("2MiB", 2**21),
        ("1 GiB", 2**30),
    ],
)
def test_sizes_are_parsed(given_text, size):
    assert parse_bytes("max_bytes", given_text) == size


@pytest.mark.parametrize(
    "wrong", ["", "MB", "-1MB", "1 TB", "1e6", "0", 0, -5, 1.5, True, None, "inf", "٣MB", "9" * 400]
)
def test_what_is_no_size_is_refused(wrong):
    with pytest.raises(lcc.InputError, match=r"max_bytes is .*such as 300kB"):
        parse_bytes("max_bytes", wrong)


@pytest.fixture
def measured(job, monkeypatch):
    """The bytes that a memory's metadata takes, which are then expected; and how many buffer tokens it has."""
    memory = job(PLENTY)
    metadata = memory.file_bytes - memory.nbytes + 300
    monkeypatch.setattr(size_budget, "_expected_metadata", lambda compilation: metadata)
    return memory, metadata


@pytest.fixture
def compiled_ratios(monkeypatch):
    """The ratio of each compilation."""
    real, ratios = size_budget.compile_once, []

    def compile_once(model, tokenizer, text, options, *rest):
        ratios.append(options.settings.ratio)
        return real(model, tokenizer, text, options, *rest)

    monkeypatch.setattr(size_budget, "compile_once", compile_once)
    return ratios


def test_plenty_of_bytes_keep_the_models_dtype(measured):
    memory, _ = measured
    assert (memory.dtype, memory.ratio, memory.max_bytes) == ("float32", LEAST_RATIO, PLENTY)
    assert memory.quantization is None


@pytest.mark.parametrize(("dtype", "share"), [("int8", 1.0), ("int4", 1.0), ("int4", 0.5)])
def test_the_file_keeps_to_its_bytes(dtype, share, job, measured, compiled_ratios, tmp_path):
    whole, beside = measured
    limit = beside + int(share * kv_bytes(whole.kv_payload.dims, FORMATS[dtype]))
    memory = job(str(limit))
    memory.save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_size == memory.file_bytes <= limit
    assert (memory.max_bytes, memory.dtype) == (limit, dtype)
    assert memory.ratio == LEAST_RATIO if share == 1 else memory.ratio > LEAST_RATIO
    assert memory.quantization == {"source_dtype": "float32"}
    assert lcc.Memory.load(tmp_path / "m").max_bytes == limit
    assert compiled_ratios == [memory.ratio]
    small = kv_bytes((*whole.kv_payload.dims[:2], memory.buffer_tokens + 1, whole.kv_payload.dims[3]), FORMATS[dtype])
    assert share == 1 or small > limit - beside


def test_more_metadata_than_expected_takes_a_larger_ratio(job, measured, compiled_ratios, monkeypatch):
    whole, beside = measured
    limit = beside + kv_bytes(whole.kv_payload.dims, FORMATS["int4"])
    monkeypatch.setattr(size_budget, "_expected_metadata", lambda compilation: beside - 700)
    memory = job(limit - 500)
    assert memory.file_bytes <= limit - 500
    assert len(compiled_ratios) == 2
    assert compiled_ratios[0] < compiled_ratios[1] == memory.ratio


def test_questions_are_known_before_the_ratio_is_chosen(job, compiled_ratios):
    asked = {"self_study_questions": 40, "general_queries": 4}
    whole = job(PLENTY, **asked)
    compiled_ratios.clear()
    questions = len(json.dumps(json.dumps(whole.questions)))
    limit = whole.file_bytes - whole.nbytes + kv_bytes(whole.kv_payload.dims, FORMATS["int4"]) // 2
    memory = job(limit, **asked)
    assert questions > 1_000
    # What was expected is a few hundred bytes more than what there is.
    assert limit - 1_000 < memory.file_bytes <= limit
    assert memory.ratio > LEAST_RATIO
    assert compiled_ratios == [memory.ratio]


def test_less_metadata_than_expected_takes_a_wider_dtype(job, measured, compiled_ratios, monkeypatch):
    whole, beside = measured
    limit = beside + kv_bytes(whole.kv_payload.dims, FORMATS["int8"])
    saved = kv_bytes(whole.kv_payload.dims, FORMATS["int8"]) - kv_bytes(whole.kv_payload.dims, FORMATS["int4"])
    monkeypatch.setattr(size_budget, "_expected_metadata", lambda compilation: beside + saved // 2)
    memory = job(limit)
    assert (memory.dtype, memory.ratio) == ("int8", LEAST_RATIO)
    assert memory.file_bytes <= limit
    assert len(compiled_ratios) == 1


@pytest.mark.parametrize("restart", [False, True])
def test_the_data_is_made_once(restart, job, measured, data_made, tmp_path):
    data_made.clear()
    job(measured[1] + 3_000, restart=restart, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert len(data_made) == 1


def test_compilers_without_data_have_none_made(job, data_made):
    assert job("20kB", compiler="attention_matching").file_bytes <= 20_000
    assert not data_made


def test_the_dtype_is_measured_when_memories_are(job, measured):
    memory = job(measured[1] + 9_000, certify=True)
    assert memory.quantized
    assert memory.certificate["dtype"] == "float32"
    assert memory.quantization["general"]["answers"] > 1
    assert memory.quantization["self_study"]["kl"] >= 0
    assert memory.file_bytes <= memory.max_bytes


def test_too_few_bytes_are_refused_before_any_work(job, data_made):
    with pytest.raises(
        lcc.InputError, match=r"max_bytes is 3,100, of which metadata takes at least 3,000.* raise max_bytes by"
    ):
        job("3100B")
    assert not data_made


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ratio": 8}, "chooses the ratio"),
        ({"ratio": "auto"}, "chooses the ratio"),
        ({"budget": "1m"}, "a budget"),
        ({"compiler": "adapter"}, "no buffer tokens"),
        ({"max_bytes": "soon"}, "such as 300kB"),
    ],
)
def test_what_does_not_go_with_it_is_refused(more, message):
    with pytest.raises(lcc.InputError, match=message):
        CompileOptions.of(**{"max_bytes": "1MB"} | more)


def test_a_start_has_a_ratio_already(measured):
    with pytest.raises(lcc.InputError, match="start has one"):
        CompileOptions.of(max_bytes="1MB", start=measured[0])


def test_a_file_of_the_same_bytes_is_skipped_and_another_refused(llama, tokenizer, text, fast, tmp_path):
    output = memory_output(tmp_path / "m", text)
    given = {name: value for name, value in fast.items() if name not in ("progress", "ratio")}

    def run(**options):
        chosen = CompileOptions.of(**given | {"certify": False, "compiler": "lcc"} | options)
        return compile_to(llama, tokenizer, text, output, chosen, Run(), Reporter(False))

    assert [run(max_bytes="1MB"), run(max_bytes=10**6)] == ["compiled", "skipped"]
    with pytest.raises(lcc.MismatchError, match="differs in max_bytes"):
        run(max_bytes="2MB")
    with pytest.raises(lcc.MismatchError, match="differs in max_bytes"):
        run(ratio=LEAST_RATIO)
    assert not list(tmp_path.glob("*.checkpoint"))
