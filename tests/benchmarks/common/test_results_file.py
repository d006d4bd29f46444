"""``benchmarks.common.results_file``: rows come back as they were written, and a failed write costs none of them."""

from __future__ import annotations

import os

import pytest

from benchmarks.common.results_file import load_details, load_rows, write_rows

ROWS = [{"method": "lcc", "kept": 0.9}, {"method": "naïve", "kept": None}]


def test_rows_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new folder" / "rows.json"
    assert load_rows(path) == []
    write_rows(path, (row for row in ROWS))
    assert load_rows(path) == ROWS
    write_rows(path, ROWS[:1], workers=2)
    assert load_rows(path) == ROWS[:1]
    assert load_details(path) == {"workers": 2}
    assert load_details(path.with_name("none")) == {}
    text = path.read_text()
    assert text.startswith('{\n "rows": [\n  {\n')
    assert text.endswith('],\n "workers": 2\n}\n')
    assert os.listdir(path.parent) == [path.name]


def test_a_failed_write_leaves_the_older_rows(tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    write_rows(path, ROWS)

    def fail(*_):
        raise OSError("the disk is gone")

    with pytest.raises(TypeError, match="not JSON serializable"):
        write_rows(path, [{"method": object()}])
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_rows(path, [])
    assert load_rows(path) == ROWS
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(("content", "error"), [("not JSON", ValueError), ('{"benchmarks": []}', KeyError)])
def test_foreign_files_are_refused(content, error, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(error):
        load_rows(path)
