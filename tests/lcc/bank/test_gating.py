"""Gates: what passes, where the threshold goes, and the ROC."""

from __future__ import annotations

import math

import pytest

import lcc
from lcc.bank.gating import ALWAYS, NEVER, Fit, Gate, fit


@pytest.mark.parametrize("entropy", [0.0, 1e-9, 3.0, 1e9])
def test_lambda_of_infinity_is_always_memory_and_of_0_never(entropy):
    assert ALWAYS.accepts(entropy)
    assert not NEVER.accepts(entropy)


def test_low_entropy_passes_and_high_divergence():
    assert Gate("entropy", 1.0).accepts(0.5)
    assert not Gate("entropy", 1.0).accepts(1.0)
    for signal in ("divergence", "likeness", "score"):
        assert Gate(signal, 1.0).accepts(1.5)
        assert not Gate(signal, 1.0).accepts(1.0)
    assert not any(Gate(signal, 0.0).accepts(math.nan) for signal in ("entropy", "divergence", "score"))


def test_a_threshold_that_tells_both_sides_apart():
    fitted = fit("entropy", [0.1, 0.2, 0.3], [1.0, 2.0], [0.25, 0.9], [0.5, 3.0])
    assert fitted.gate == Gate("entropy", 0.65)
    assert (fitted.kept, fitted.refused, fitted.accuracy) == (0.5, 0.5, 0.5)
    assert fitted.count == (2, 2)
    fitted = fit("divergence", [4.0, 5.0], [0.0, 1.0], [3.0], [2.0])
    assert fitted.gate == Gate("divergence", 2.5)
    assert (fitted.accuracy, fitted.area) == (1.0, 1.0)


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    answered, others = [1.0, 3.0, 5.0], [2.0, 4.0, 0.0]
    right = sum(one > other for one in answered for other in others) / 9
    fitted = fit("score", answered, others, answered, others)
    assert fitted.area == pytest.approx(right)
    assert fitted.roc[0] == (0.0, 0.0)
    assert fitted.roc[-1] == (1.0, 1.0)
    assert Fit.from_dict(fitted.to_dict()) == fitted


def test_questions_without_a_candidate_are_refused_and_move_no_threshold():
    fitted = fit("entropy", [0.1, 0.3], [1.0, math.inf], [0.2], [math.inf])
    assert fitted.gate == Gate("entropy", 0.65)
    assert fitted.refused == 1.0


def test_what_cannot_be_fitted_or_is_no_gate():
    with pytest.raises(lcc.InputError, match="too few questions"):
        fit("entropy", [0.1], [], [0.1], [1.0])
    with pytest.raises(lcc.InputError, match="gate is mood"):
        Gate("mood", 1.0)
    with pytest.raises(lcc.InputError, match="threshold"):
        Gate("entropy", math.nan)
