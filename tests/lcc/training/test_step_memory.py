"""A step fits: what it takes is known before, what does not fit is recomputed, chunked, or left on disk."""

from __future__ import annotations

import copy
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import lcc
import lcc_kernels as lk
from benchmarks.common.timing import peak_bytes
from benchmarks.compile import step_speed
from lcc.data.cache import DataCache
from lcc.data.samples import DistillationData, Sample
from lcc.data.teacher_states import TeacherStates
from lcc.modeling.kv import KV
from lcc.pipeline.settings import make_settings
from lcc.training import execution
from lcc.training.distractors import Distractor, Distractors
from lcc.training.loss import step_loss
from lcc.training.settings import ExecutionSettings
from lcc.training.step_memory import step_memory

WAYS = [{}, {"gradient_checkpointing": True}, {"gradient_checkpointing": True, "encode_chunk": 64}]
STEP = ["--context", "256", "--ratio", "16", "--batch", "6", "--repetitions", "1"]


@pytest.fixture(scope="module")
def job():
    step = step_speed.parse(STEP)
    with step_speed.prepare(step_speed.load(step, torch.float32), step) as job:
        yield job


def layout_of(job, factor=1):
    text, segments = job.memory.context, [len(sample.input_ids) * factor for sample in job.samples]
    return lk.BottleneckLayout(len(job.memory.prefix), len(text.context_ids) * factor, text.buffer * factor, segments)


def test_each_way_takes_less_and_as_much_as_estimated(job):
    peaks = []
    for way in WAYS:
        settings = job.settings.replace(**way)
        estimate = step_memory(job.memory.model, layout_of(job), settings.execution).total
        peaks.append(peak_bytes(lambda: step_speed.packed(replace(job, settings=settings)), "cpu"))  # noqa: B023
        assert 0.75 * peaks[-1] <= estimate <= 1.33 * peaks[-1]
    assert peaks[0] > 2 * peaks[1] > 2 * peaks[2]


@pytest.mark.parametrize("way", WAYS)
def test_a_step_among_distractors_takes_as_much_as_estimated(job, way):
    settings, memory = job.settings.replace(**way), job.memory
    shape = memory.encode().keys.shape
    other = KV(*torch.randn(2, *shape[:2], 1200, shape[3]))
    estimate = step_memory(memory.model, layout_of(job), settings.execution, beside=1200).total
    parameters = [memory.buffer, *memory.lora]

    def step():
        loss = step_loss(
            memory, job.samples, settings.training, settings.execution, None, Distractors((Distractor(other),))
        )
        return torch.autograd.grad(loss, parameters, materialize_grads=True)

    peak = peak_bytes(step, "cpu")
    assert 0.75 * peak <= estimate <= 1.33 * peak


def test_estimate_is_linear_in_length_and_leaves_a_plain_model_alone(job, llama):
    before = copy.deepcopy(llama.state_dict())
    for way in WAYS:
        execution = job.settings.replace(**way).execution
        one, two, four = (step_memory(llama, layout_of(job, factor), execution).total for factor in (1, 2, 4))
        assert (four - two) == pytest.approx(2 * (two - one), rel=0.01)
    assert llama.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in llama.state_dict().items())


def test_estimating_leaves_no_hooks(job):
    def hooks():
        return sum(len(module._forward_hooks) for module in job.memory.model.modules())

    before = hooks()
    step_memory(job.memory.model, layout_of(job), job.settings.execution)
    assert hooks() == before


def test_what_does_not_fit_is_recomputed_then_chunked(job, monkeypatch):
    ways = [job.settings.replace(**way).execution for way in WAYS]
    sizes = [step_memory(job.memory.model, layout_of(job), way).total for way in ways]
    answers = sum(len(sample.input_ids) for sample in job.samples)
    monkeypatch.setattr(execution, "CHUNK", 64)

    def fitted(free, **settings):
        resolved = execution.resolve_auto(job.memory, answers, ExecutionSettings(**settings), free)
        return resolved.gradient_checkpointing, resolved.encode_chunk

    assert fitted(2 * sizes[0]) == (False, 0)
    assert fitted(sizes[0]) == (True, 0)
    assert fitted(sizes[1]) == (True, 64)
    assert fitted(sizes[1], gradient_checkpointing=False, encode_chunk=0) == (False, 0)
    assert fitted(None) == (False, 0)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the mapping is looked up in /proc")
def test_teacher_states_past_the_budget_are_mapped_files(tmp_path):
    rows = torch.randn(6, 8)
    states = TeacherStates(rows.nbytes, tmp_path)
    assert states.keep(rows) is rows
    mapped = states.keep(rows)
    assert torch.equal(mapped, rows)
    assert mapped is not rows
    address = mapped.data_ptr()
    ranges = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert any(int(r[0].split("-")[0], 16) <= address < int(r[0].split("-")[1], 16) for r in ranges)
    assert not list(tmp_path.iterdir())
    with pytest.raises(lcc.MemoryFileError, match="nor on disk"):
        TeacherStates(0, tmp_path / "missing").keep(rows)


def test_teacher_states_on_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("lcc.data.teacher_states.save_file", full)
    with pytest.raises(lcc.MemoryFileError, match="No space left on device; free space or"):
        TeacherStates(0, tmp_path).keep(torch.randn(6, 8))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_written_and_read_without_holding_its_teacher_states(tmp_path):
    rows, states = 1 << 10, TeacherStates(0, tmp_path)
    ids = (1,) * rows

    def sample(number):
        generator = torch.Generator().manual_seed(number)
        stream = "general" if number else "reconstruction"
        return Sample((1,), ids, stream, str(number), states.keep(torch.randn(rows, 1024, generator=generator)))

    surrogate, found = DistillationData((sample(0),), (sample(1), sample(2)), (sample(3),)), []
    store, one = DataCache(tmp_path / "run", {}), rows * 1024 * 4

    def there_and_back():
        store.save(surrogate)
        found.append(store.load(torch.device("cpu"), budget=one))

    tracemalloc.start()
    try:
        tensors, (_, python) = peak_bytes(there_and_back, "cpu"), tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    mapped = (tmp_path / "run" / "surrogate.safetensors").stat().st_size  # counted as if it were held
    assert max(tensors - mapped, python) < one
    assert found == [surrogate]
    for old, new in zip((sample(0), *surrogate.train), (*found[0].reconstruction, *found[0].train), strict=True):
        assert torch.equal(old.teacher_hidden, new.teacher_hidden)


def test_states_past_the_budget_stay_where_they_were_read():
    states, hidden = TeacherStates(32), torch.ones(2, 4)
    assert states.load(hidden, torch.device("meta")).is_meta
    assert states.load(hidden, torch.device("meta")) is hidden


def test_a_compilation_does_not_depend_on_where_teacher_states_are(llama, tokenizer, text, fast, tmp_path):
    held = lcc.compile(llama, tokenizer, text, **fast)
    mapped = lcc.compile(llama, tokenizer, text, teacher_gigabytes=0, **fast)
    assert torch.equal(held.kv.keys, mapped.kv.keys)


def test_settings_are_checked():
    for wrong in ({"engine": "fast"}, {"gradient_checkpointing": "yes"}, {"encode_chunk": -1}, {"encode_chunk": 1.5}):
        with pytest.raises(lcc.InputError, match=next(iter(wrong))):
            make_settings(**wrong)


@pytest.mark.parametrize("way", [{"gradient_checkpointing": True}, {"encode_chunk": 64}, {"torch_compile": True}])
def test_the_reference_engine_refuses_what_it_would_ignore(way):
    make_settings(engine="packed", **way)
    make_settings(engine="reference", gradient_checkpointing=False, encode_chunk=0, torch_compile=False)
    with pytest.raises(lcc.InputError, match=f"{next(iter(way))} is .* engine='reference', or take 'packed'"):
        make_settings(engine="reference", **way)


def test_compile_step_prints_what_it_promises(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["step_speed", *STEP, "--context", "64", "--json"])
    step_speed.main()
    result = json.loads(capsys.readouterr().out)
    assert result["gradient_relative_error"] <= 1e-9
    assert result["speedup_over_per_sample"] > 0
    assert result["speedup_over_two_pass"] > 0
    assert result["gflop"]["packed"] < result["gflop"]["two_pass"] < result["gflop"]["per_sample"]
