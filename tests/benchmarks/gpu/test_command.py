"""``python -m benchmarks.gpu``: what it does with a GPU, without one, and in a preflight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import preflight
from benchmarks.gpu.rows import sweep
from benchmarks.gpu.steps import STEPS

WRONG = {"step": "machine", "case": "copy", "failed": "RuntimeError: no"}


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as the command can see; what it would have run is in the list."""
    runs = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "run_steps", lambda *arguments: runs.append(arguments))
    return runs


def test_on_a_gpu_steps_run_and_wrong_rows_make_the_exit_code(gpu, tmp_path, capsys):
    assert command.main(["--out", str(tmp_path), "--steps", "tiles", "machine", "--seconds", "9"]) == 0
    ((steps, folder, seconds),) = gpu
    assert ([step.name for step in steps], folder, seconds) == (["machine", "tiles"], tmp_path, 9)
    sweep(tmp_path).add({"step": "correctness", "case": "nan", "passed": False})
    assert command.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "WRONG: correctness: nan" in said
    assert f"python -m benchmarks.report {tmp_path} -o PAGE" in said


def test_what_failed_before_is_measured_again(gpu, tmp_path):
    sweep(tmp_path).add(WRONG)
    assert command.main(["--out", str(tmp_path)]) == 0
    assert sweep(tmp_path).rows == []


@pytest.fixture
def no_kernels(monkeypatch):
    """Leave out the compilation of kernels; the tables whose kernels would have been compiled."""
    tables = []
    monkeypatch.setattr(preflight, "compile_kernels", lambda table, quick: tables.append(table) or True)
    return tables


def test_without_a_gpu_it_says_what_it_would_do_and_tries_tiny_cases(monkeypatch, no_kernels, capfd):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--steps", "machine"]) == 0
    said = capfd.readouterr().out
    assert "no CUDA GPU is here" in said
    assert STEPS[0].about in said
    assert "preflight: 4 tiny cases, 0 refused here, 0 wrong" in said
    assert {table.parent.name for table in no_kernels} >= {"attach_kv", "bottleneck", "shared_prefix"}


@pytest.mark.parametrize(("row", "code", "sound"), [({}, 0, True), ({}, 1, False), ({"passed": False}, 0, False)])
def test_a_preflight_is_as_sound_as_its_cases_and_its_processes(monkeypatch, no_kernels, row, code, sound):
    def tiny(words, seconds, environment):
        sweep(Path(words[words.index("--out") + 1])).add({"step": "machine", "case": "copy"} | row)
        return code

    monkeypatch.setattr(preflight, "run_within", tiny)
    assert preflight.preflight(STEPS[:1], quick=True) == sound


def test_quick_compiles_one_configuration_of_an_op_and_leaves_out_slow_steps(monkeypatch):
    ran = []
    monkeypatch.setattr(preflight, "run_within", lambda words, *_: ran.append(words) or 0)
    assert preflight.preflight(STEPS, quick=True)
    compiled = [words[words.index("--select") + 1 :] for words in ran if "--select" in words]
    assert compiled
    assert all(len(names) == 1 and names[0].startswith("90:") for names in compiled)
    tried = [name for words in ran if "--measure" in words for name in words[words.index("--measure") + 1 :]]
    assert sorted(tried) == sorted(step.name for step in STEPS if not step.slow)


def test_kernels_that_do_not_compile_are_not_sound(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "ROOT", tmp_path)
    table = tmp_path / "tests" / "resources.json"
    table.parent.mkdir()
    table.write_text(json.dumps({"triton": "3.7", "80:64": {}, "90:64": {}}))
    assert not preflight.compile_kernels(table, quick=False)  # there is no module beside it


def test_every_op_that_compiles_ahead_of_time_is_found():
    assert {path.parent for path in preflight.ROOT.glob("tests/lcc_kernels/*/aot.py")} == {
        path.parent for path in preflight.ROOT.glob(preflight.TABLES)
    }


def test_the_list_names_every_step_and_runs_none(gpu, capsys):
    assert command.main(["--list"]) == 0
    assert gpu == []
    said = capsys.readouterr().out
    assert all(step.name in said and f"{step.seconds} s" in said for step in STEPS)


def test_an_unknown_step_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        command.main(["--steps", "tails"])
    assert "no step tails: there are machine, correctness" in capsys.readouterr().err
