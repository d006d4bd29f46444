"""How good an answer is, in [0, 1]: pure functions of the answer and its references."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

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
    """F1 of the longest common subsequence of words, for the best reference (ROUGE-L; Lin 2004, section 3.2).

    Words are runs of letters and digits in lower case; there is no stemming, and a text is one sequence.
    """
    words = re.findall(r"\w+", prediction.lower())
    return max(_rouge_l(words, re.findall(r"\w+", reference.lower())) for reference in references)


def string_match(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that occur in the answer, case ignored (RULER's ``string_match_all``)."""
    return sum(reference.lower() in prediction.lower() for reference in references) / len(references)


def string_match_any(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference occurs in the answer, case ignored (RULER's ``string_match_part``)."""
    return float(any(reference.lower() in prediction.lower() for reference in references))


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "f1": token_f1,
    "rouge_l": rouge_l,
    "string_match": string_match,
    "string_match_any": string_match_any,
}


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    return _harmonic((Counter(found) & Counter(wanted)).total(), len(found), len(wanted))


def _rouge_l(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    return _harmonic(_common_subsequence(found, wanted), len(found), len(wanted))


def _harmonic(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted)


def _common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for index, other in enumerate(right, 1):
            diagonal, row[index] = row[index], diagonal + 1 if word == other else max(row[index], row[index - 1])
    return row[-1]
