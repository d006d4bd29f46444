"""Metrics against values worked out by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lcc.errors import InputError
from lcc.evaluation import Answers, Example, evaluate, metrics
from lcc.evaluation.metrics import (
    METRICS,
    exact_match,
    normalize,
    rouge_l,
    string_match,
    string_match_any,
    token_f1,
    usable_metrics,
)


def test_normalisation_is_squads():
    assert normalize("  The Cat, and AN owl!  ") == "cat and owl"
    assert normalize("theatre") == "theatre"


def test_exact_match_takes_any_reference():
    assert exact_match("the Paris.", ["London", "paris"]) == 1
    assert exact_match("Paris, France", ["paris"]) == 0


def test_token_f1():
    # Two of three words found, two of four wanted: precision 2/3, recall 1/2.
    assert token_f1("red green cat", ["red green blue pink"]) == pytest.approx(4 / 7)
    assert token_f1("red green", ["dog", "green red"]) == 1
    assert token_f1("red red", ["red"]) == pytest.approx(2 / 3)
    assert token_f1("", ["the"]) == 1
    assert token_f1("", ["dog"]) == 0


def test_rouge_l_is_about_order():
    assert rouge_l("police watched the gunman", ["police kill the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman police killed", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("x", ["y", "x"]) == 1
    assert rouge_l("...", ["word"]) == 0


def test_rouge_l_is_the_published_one():
    # Words are stemmed; precision 2/3, recall 1/2.
    assert rouge_l("police killed the gunman", ["police kills the gunman"]) == 1
    assert rouge_l("Dogs barked loud", ["dog barks at cats"]) == pytest.approx(4 / 7)
    # Words are ASCII alone.
    assert rouge_l("猫", ["猫"]) == 0


def test_rouge_l_against_brute_force():
    import random
    from itertools import combinations

    rng = random.Random(0)
    for _ in range(30):
        left, right = (rng.choices("abc", k=rng.randint(1, 6)) for _ in range(2))
        subsequences = {tuple(c) for size in range(7) for c in combinations(right, size)}
        longest = max(size for size in range(7) for c in combinations(left, size) if tuple(c) in subsequences)
        expected = 2 * longest / (len(left) + len(right))
        assert rouge_l(" ".join(left), [" ".join(right)]) == pytest.approx(expected)


@pytest.fixture
def without_rouge_score(monkeypatch):
    metrics._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    yield
    metrics._rouge_scorer.cache_clear()


def test_without_rouge_score_the_others_work(without_rouge_score, tmp_path):
    assert usable_metrics() == [name for name in METRICS if name != "rouge_l"]
    with pytest.raises(InputError, match=r"pip install 'lcc-kernels\[eval\]'"):
        rouge_l("a", ["a"])
    (result,) = evaluate([Echo()], [Example("c", "q", ("q",))], tmp_path, progress=False)
    assert result.scores.keys() == set(usable_metrics())
    asked = Echo()
    with pytest.raises(InputError, match=r"pip install 'lcc-kernels\[eval\]'"):
        evaluate([asked], [Example("c", "q", ("q",), metric="rouge_l")], tmp_path / "rouge", progress=False)
    assert not asked.asked


class Echo:
    """Answers every question with itself."""

    name, identity, asked = "echo", {}, 0

    def answer(self, context, examples):
        self.asked += 1
        return Answers([example.question for example in examples], kv_bytes=0, seconds=0.0)


def test_optional_packages_are_imported_late():
    code = "import sys, lcc.evaluation; print(sorted({'openai', 'rouge_score', 'nltk'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_string_matches_are_rulers():
    assert string_match("They are 12 and 57.", ["12", "57", "99"]) == pytest.approx(2 / 3)
    assert string_match_any("They are 12 and 57.", ["99", "57"]) == 1
    assert string_match_any("none", ["99"]) == 0
    assert string_match("PARIS", ["Paris"]) == 1


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_a_share(name):
    for prediction in ("", "a", "Mara lives in Alden", "\u2028"):
        assert 0 <= METRICS[name](prediction, ["Alden", "the town"]) <= 1
    assert METRICS[name]("Alden", ["Alden"]) == 1
