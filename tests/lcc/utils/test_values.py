"""Settings and options by the types of their fields, from Python and from the command line."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import pytest
import typer
from typer.testing import CliRunner

from lcc.cli.options import SeedOption, SettingsOption, StepsOption, chosen_settings, parse_settings
from lcc.errors import InputError
from lcc.pipeline.settings import CompileSettings, known_settings, make_settings
from lcc.utils.values import check, parse


@pytest.mark.parametrize("word", ["true", "True", "YES", "on", "1", " true "])
def test_words_for_true(word):
    assert parse_settings([f"coupled={word}"]) == {"coupled": True}


@pytest.mark.parametrize("word", ["false", "False", "NO", "off", "0"])
def test_words_for_false(word):
    assert parse_settings([f"coupled={word}", f"keep_prefix={word}"]) == {"coupled": False, "keep_prefix": False}


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("rank=8", 8), ("seed=-3", -3), ("steps=+5", 5), ("learning_rate=3e-2", 0.03), ("ratio=8", 8.0),
        ("ratio=auto", "auto"), ("loss=mse", "mse"), ("encode_chunk=auto", "auto"), ("encode_chunk=64", 64),
        ("gradient_checkpointing=auto", "auto"), ("gradient_checkpointing=no", False),
        ("targets=q_proj, k_proj", ("q_proj", "k_proj")),
        ('targets=["q_proj"]', ("q_proj",)), ("targets=none", None), ("targets=a=b", ("a=b",)),
    ],
)  # fmt: skip
def test_values_are_read_by_the_fields_type(pair, value):
    (found,) = parse_settings([pair]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("coupled=maybe", "coupled is maybe; it must be true or false"),
        ("coupled=2", "true or false"),
        ("rank=4.0", "rank is 4.0; it must be a whole number"),
        ("rank=1_000", "a whole number"),
        ("rank=" + "9" * 5000, "a whole number"),
        ("ratio=0x10", "a number"),
        ("learning_rate=fast", "a number"),
        ("loss=L1", "loss is L1; it must be kl or mse"),
        ("encode_chunk=some", "a whole number or auto"),
        ("targets=" + "[" * 99_999, "a list of names or none"),
        ("rank", "--set rank has no value"),
        ("rnak=3", "unknown setting 'rnak'; did you mean rank"),
        ("checkpoint=c", "unknown setting 'checkpoint'"),
        ("=3", "unknown setting ''"),
    ],
)
def test_pairs_that_spell_no_setting(pair, message):
    with pytest.raises(InputError, match=message):
        parse_settings([pair])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 4.5}, r"rank is 4.5 \(float\); it must be a whole number"),
        ({"rank": True}, "a whole number"),
        ({"rank": 10**10}, "1000000000 at most"),
        ({"rank": 10**5000}, "rank is .* too large to be printed"),
        ({"coupled": "False"}, r"coupled is False \(str\); it must be true or false"),
        ({"keep_prefix": 0}, "true or false"),
        ({"general_queries": 1.5}, "a whole number"),
        ({"seed": 10**30}, "from -9223372036854775808 to 18446744073709551615"),
        ({"seed": "0"}, "a whole number"),
        ({"ratio": 10**400}, "a number"),
        ({"ratio": float("nan")}, "ratio is nan; it must be finite"),
        ({"teacher_gigabytes": float("inf")}, "finite"),
        ({"momentum": "0.7"}, "a number"),
        ({"targets": ("q_proj", 1)}, r"targets\[1\] is 1 \(int\); it must be text"),
        ({"targets": ("\ud800",)}, "it must be text"),
        ({"loss": None}, "kl or mse"),
        ({"gradient_checkpointing": "yes"}, "true or false or auto"),
        ({"encode_chunk": False}, "a whole number or auto"),
        ({"self_study_temperature": 1e-300}, "more than 1e-20"),
    ],
)
def test_python_callers_are_told_too(wrong, message):
    with pytest.raises(InputError, match=message):
        CompileSettings().replace(**wrong)


def test_a_setting_with_an_option_of_its_own():
    app, found = typer.Typer(), []

    @app.command()
    def command(
        context: typer.Context, steps: StepsOption = None, seed: SeedOption = 0, settings: SettingsOption = None
    ):
        found.append(chosen_settings(context, settings, steps=steps, seed=seed))

    def run(*words: str):
        return CliRunner().invoke(app, words)

    for words in (["--steps", "3"], ["--set", "steps=3"], ["--steps", "3", "--set", "steps=3"]):
        assert run(*words).exit_code == 0
        assert found.pop() == {"steps": 3, "seed": 0}
    clash = run("--steps", "3", "--set", "steps=4").exception
    assert str(clash) == "--steps is 3 and --set steps is 4: leave one of them out"
    assert "is no setting but an option of its own: give --set" in str(run("--set", "settings=1").exception)


def test_whole_numbers_are_numbers():
    assert make_settings(momentum=0, ratio=8) == make_settings(momentum=0.0, ratio=8.0)
    assert type(CompileSettings().replace(momentum=0).training.momentum) is float


def test_every_setting_says_what_it_must_be():
    for name, kind in known_settings().items():
        with pytest.raises(InputError, match=name):
            check(name, object(), kind)


class Inner(TypedDict):
    score: float


class Outer(TypedDict, total=False):
    inner: Inner
    parts: list[Inner]
    named: dict[str, int]
    source: Literal["a", "b"] | None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "it is .*; it must be an object"),
        ({"inner": {}}, "it.inner has no score; it must be a number"),
        ({"parts": [{"score": 1}, {"score": "x"}]}, r"it.parts\[1\].score is x \(str\)"),
        ({"named": {"a": 1, "b": None}}, "it.named.b is None"),
        ({"named": {1: 1}}, "a key of it.named is 1"),
        ({"source": "c"}, "it.source is c .*a or b"),
    ],
)
def test_the_wrong_part_is_named(value, message):
    check("it", {"inner": {"score": 1}, "source": None, "more": object()}, Outer)
    with pytest.raises(InputError, match=message):
        check("it", value, Outer)


def test_anything_is_anything():
    check("it", object(), Any)
    assert parse("it", "a\nb", str) == "a\nb"


def test_an_error_can_be_printed_whatever_it_quotes():
    with pytest.raises(InputError) as refusal:
        check("questions", ("Who? \ud800",), tuple[str, ...])
    assert "\\ud800" in str(refusal.value)
    assert str(refusal.value).encode()
