"""JSON from outside."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file

from lcc.errors import MemoryFileError
from lcc.text.queries import load_queries
from lcc.utils.row_store import RowStore
from lcc.utils.safe_json import DEEPEST, DIGITS, JSONError, parse_json
from lcc.utils.tensor_files import load_tensors, save_tensors

BAD = {
    "[" * 100_000: "is nested deeper than 64 levels",
    '{"a":' * 100_000: "is nested deeper",
    "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1): "is nested deeper",
    "9" * 5000: "holds a number of 5000 digits",
    "[1e999]": "holds a number that is too large: 1e999",
    '{"a": NaN}': "holds NaN, which is no JSON number",
    "-Infinity": "holds -Infinity",
    '["\\ud800"]': r"holds \\ud800, half of a surrogate pair",
    '{"\\udfff": 1}': r"holds \\udfff, half of a surrogate pair",
    "{": "is not JSON: ",
    "": "is not JSON: ",
}


@pytest.mark.parametrize(("text", "message"), BAD.items(), ids=range(len(BAD)))
def test_what_nothing_here_writes(text, message, tmp_path):
    with pytest.raises(JSONError, match=message):
        parse_json(text)
    save_file({}, tmp_path / "file", {"lcc": text})
    with pytest.raises(MemoryFileError, match=f"its metadata {message}"):
        load_tensors(tmp_path / "file", "test-1")
    if text:
        (tmp_path / "rows.jsonl").write_text(text + "\n")
        with pytest.raises(ValueError, match=f"line 1 {message}"):
            load_queries(tmp_path / "rows.jsonl")


def test_what_is_still_json():
    deep, long = "[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1), "9" * DIGITS
    assert parse_json(f'{{"a": {deep}, "b": {long}, "c": "\\ud83d\\ude00"}}') == {
        "a": json.loads(deep),
        "b": int(long),
        "c": "\U0001f600",
    }
    assert parse_json(b'"caf\xc3\xa9"') == "café"
    with pytest.raises(JSONError, match="is not UTF-8"):
        parse_json(b'"caf\xe9"')


def test_figures_that_are_no_numbers_become_null(tmp_path):
    save_tensors(tmp_path / "file", "test-1", {}, {"kl": float("nan"), "loss": [float("inf"), 1.5]})
    assert load_tensors(tmp_path / "file", "test-1")[1] == {"kl": None, "loss": [None, 1.5]}


@pytest.mark.parametrize("line", ['{"key": []}', '{"key": "a", "more": 1}', "[1]", "[" * 9999, '{"key": NaN}'])
def test_rows_of_other_types_are_damage(line, tmp_path):
    path = tmp_path / "rows.jsonl"
    RowStore(path, {"a": 1}, {"key": str}).append([{"key": "fine"}])
    assert RowStore(path, {"a": 1}, {"key": str}).rows == [{"key": "fine"}]
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(MemoryFileError, match="damaged"):
        RowStore(path, {"a": 1}, {"key": str})
