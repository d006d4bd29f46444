"""The benchmark of a year: its texts, and what its rows say."""

from __future__ import annotations

import pytest

import lcc
from benchmarks.compile import year
from benchmarks.compile.year import CONSTANT, GROWING, MONTHS, ONCE, RAW, Year, months, plot


def test_no_month_knows_another_months_people():
    texts = months(0)
    names = [name for text in texts for name in text.names]
    assert len(texts) == MONTHS
    assert len(set(names)) == len(names) == year.PEOPLE * MONTHS
    assert [text.text for text in months(1)] != [text.text for text in texts]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A year whose memories cost nothing: kept K and V of the texts' first tokens, by name."""
    made = []

    def compiled(model, tokenizer, text, ratio, **_):
        made.append(("compile", ratio, text))
        return lcc.compile(model, tokenizer, text, compiler="flashmem", ratio=max(ratio, 2), certify=False,
                           progress=False)  # fmt: skip

    def updated(model, tokenizer, before, text, growing, **_):
        made.append(("update", growing, text))
        return before

    monkeypatch.setattr(year, "lcc", type("lcc", (), {"compile": compiled, "update": updated, "Memory": lcc.Memory}))
    return Year(0, tmp_path, 1, 1), made


def test_a_second_call_goes_on(small):
    one, made = small
    rows = list(one.rows(GROWING, [1, 2]))
    assert [(kind, text) for kind, _, text in made] == [("compile", one.texts[0].text), ("update", one.texts[1].text)]
    assert [len(row["share"]) for row in rows] == [1, 2]
    assert all(0 <= share <= 1 for row in rows for share in row["share"])
    again = list(one.rows(GROWING, [2]))
    assert len(made) == 2
    assert again[0]["share"] == rows[1]["share"]
    assert list(one.rows(CONSTANT, [1]))
    assert made[-1][:2] == ("compile", 1.0)


def test_all_at_once_and_the_texts_themselves(small, tmp_path):
    one, made = small
    rows = [row for way in (ONCE, RAW) for row in one.rows(way, [2])]
    assert made[-1] == ("compile", year.RATIO, one.text(2))
    assert rows[1]["share"] == [1.0, 1.0]
    assert rows[0]["tokens"] < rows[1]["tokens"] / 10
    plot([row | {"after": MONTHS, "share": [0.5] * MONTHS} for row in rows], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
