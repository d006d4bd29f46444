"""Texts that end an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcc.serving.stops import Stops

AB = st.text("ab", max_size=12)


def passed(pieces, stops) -> tuple[str, bool]:
    """What is let through of pieces, and whether a stop text came."""
    watching, out = Stops(stops), ""
    for piece in pieces:
        out += watching.push(piece)
        if watching.stopped:
            return out, True
    return out + watching.rest(), False


@pytest.mark.parametrize(
    ("pieces", "stops", "out", "stopped"),
    [
        (["abc"], [], "abc", False),
        (["abc"], [""], "abc", False),
        (["ab", "cd"], ["bc"], "a", True),
        (["ab", "c"], ["bd"], "abc", False),
        (["ab"], ["bd"], "ab", False),
        (["stop"], ["stop"], "", True),
        (["a\n", "\nb"], ["\n\n"], "a", True),
        (["xyz"], ["z", "y"], "x", True),
        (["aab"], ["ab", "aab"], "", True),
        (["", "", "a"], ["b"], "a", False),
        (["né", "é"], ["éé"], "n", True),
    ],
)
def test_stops(pieces, stops, out, stopped):
    assert passed(pieces, stops) == (out, stopped)


def test_nothing_is_held_back_that_no_stop_begins_with():
    watching = Stops(["\n\n"])
    assert watching.push("a\nb") == "a\nb"
    assert watching.push("c\n") == "c"
    assert watching.push("d") == "\nd"
    assert watching.rest() == ""


@given(st.lists(AB, max_size=6), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4))
def test_pieces_make_no_difference(pieces, stops):
    """Whatever the pieces are: the text up to where the first stop text begins that is complete first."""
    text = "".join(pieces)
    out, stopped = passed(pieces, stops)
    assert stopped == any(stop in text for stop in stops)
    assert text.startswith(out)
    assert stopped or out == text
    assert not any(stop in out for stop in stops)
