"""How good an answer is, in [0, 1]: pure functions of the answer and its references."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from ..errors import InputError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case without punctuation, articles and extra white space (SQuAD's normalisation, Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer is one of the references, both normalised."""
    return float(normalize(prediction) in map(normalize, references))


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Harmonic mean of the precision and recall of normalised words, for the best reference (SQuAD's F1)."""
    return max(_f1(normalize(prediction).split(), normalize(reference).split()) for reference in references)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F-measure of ROUGE-L with stemming, for the best reference, as the rouge-score package computes it.

    Words are runs of ASCII letters and digits; a text without any scores 0.

    Raises:
        InputError: the package is not installed.
    """
    return float(_rouge_scorer().score_multi(references, prediction)["rougeL"].fmeasure)


def string_match(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the answer, case ignored (RULER's ``string_match_all``)."""
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def string_match_any(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference occurs in the answer, case ignored (RULER's ``string_match_part``)."""
    return float(any(reference.lower() in prediction.lower() for reference in references))


def contains(prediction: str, references: Sequence[str]) -> float:
    """1 if one of the references occurs in the answer as a run of whole words, both normalised."""
    words = f" {normalize(prediction)} "
    return float(any(f" {normalize(reference)} " in words for reference in references))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "rouge_l": rouge_l,
    "string_match": string_match,
    "string_match_any": string_match_any,
    "contains": contains,
}


def check_metric(name: str) -> None:
    """Refuse a metric of ``METRICS`` whose package is not installed.

    Raises:
        InputError: it says how to install it.
    """
    if name == "rouge_l":
        _rouge_scorer()


def usable_metrics() -> list[str]:
    """The names in ``METRICS`` whose packages are installed."""
    return [name for name in METRICS if _is_usable(name)]


def _is_usable(name: str) -> bool:
    try:
        check_metric(name)
    except InputError:
        return False
    return True


@lru_cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError("rouge_l needs the rouge-score package: pip install 'lcc-kernels[eval]'") from None
    return RougeScorer(["rougeL"], use_stemmer=True)


def _f1(words: list[str], wanted: list[str]) -> float:
    if not words or not wanted:
        return float(words == wanted)
    return 2 * (Counter(words) & Counter(wanted)).total() / (len(words) + len(wanted))
