"""``benchmarks.report`` on a small run of its own making."""

import json

import pytest

pytest.importorskip("matplotlib")

from benchmarks.common.report_parts import error_bars, line
from benchmarks.report import main

WHERE = {"device": "some GPU", "driver": "1.2", "torch": "2.13", "triton": "3.7", "commit": "abc1234"}


def measured(peer, median, **extra):
    info = {"op": "bottleneck_attention", "case": "small", "peer": peer, "direction": "fwd", **WHERE, **extra}
    return {"stats": {"median": median}, "extra_info": info}


@pytest.fixture
def run(tmp_path):
    """Two peers on one case, one of them also backward, and a benchmark without a peer."""
    benchmarks = [
        measured("torch", 0.002, peak_bytes=3 * 2**20, active_tflops=1.5),
        measured("torch", 0.004, direction="bwd"),
        measured("dense", 0.009),
        {"stats": {"median": 1.0}, "extra_info": {"op": "linear_kl", "case": "inference"}},
    ]
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_and_plot(run, tmp_path):
    main([str(run), "-o", str(tmp_path / "out")])
    title, _, head, _, *rows = (tmp_path / "out/report.md").read_text().strip().split("\n")
    assert title == "## bottleneck_attention (run)"
    assert cells(head)[6:8] == ["vs torch", "vs dense"]
    where = "device some GPU, driver 1.2, torch 2.13, triton 3.7, commit abc1234"
    assert [cells(row) for row in rows] == [
        ["small", "fwd", "torch", "2", "3", "1.5", "1", "4.5", where],
        ["small", "fwd", "dense", "9", "", "", "0.222", "1", where],
        ["small", "bwd", "torch", "4", "", "", "1", "", where],
    ]
    assert (tmp_path / "out/report.png").read_bytes().startswith(b"\x89PNG")


def test_a_device_is_believed_before_the_host(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"benchmarks": [measured("triton", 0.002, device_seconds=0.0005)]}))
    main([str(path), "-o", str(tmp_path)])
    assert "| triton | 0.5 |" in (tmp_path / "report.md").read_text()


def test_runs_are_not_compared_with_one_another(run, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"benchmarks": [measured("dense", 0.001)]}))
    main([str(run), str(other), "-o", str(tmp_path)])
    table = (tmp_path / "report.md").read_text()
    assert "## bottleneck_attention (other)" in table
    assert "| 4.5 |" in table


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "cannot be read"),
        ("not JSON", "is not pytest-benchmark JSON"),
        ('{"rows": []}', "is not pytest-benchmark JSON"),
        ('{"benchmarks": []}', "has no benchmark with an op"),
    ],
)
def test_foreign_files_are_refused(content, cause, tmp_path, capsys):
    path = tmp_path / "foreign.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit):
        main([str(path)])
    error = capsys.readouterr().err
    assert f"{path} {cause}" in error
    assert "--benchmark-json" in error


def test_a_bar_in_a_cell_does_not_end_it():
    assert line(["a|b", "c"]) == "| a\\|b | c |"


def test_error_bars_reach_to_their_interval_if_the_point_is_in_it():
    rows = [
        {"kept": 0.5, "interval": [0.25, 0.625]},
        {"kept": 0.5, "interval": [0.625, 0.75]},
        {"kept": 0.5, "interval": None},
        {"kept": None, "interval": None},
    ]
    assert error_bars(rows, "kept", "interval") == ([50, 50, 50, 0], [[25, 0, 0, 0], [12.5, 25, 0, 0]])
