"""What a compilation is asked to do: settings in groups, which the rooms own; flat at every public door."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from ..compilers import registry
from ..data.settings import DataSettings
from ..errors import InputError
from ..training.settings import ExecutionSettings, TrainingSettings
from ..utils.settings import AUTO, LARGEST, SettingsGroup, setting_types
from ..utils.values import check, require

if TYPE_CHECKING:
    from ..compilers.base import Compiler

__all__ = ["AUTO", "RECIPES", "CompileSettings", "known_settings", "make_settings", "require_setting"]

# Seeds that torch takes.
SEEDS = range(-(2**63), 2**64)
# Other keywords of ``lcc.compile``.
KEYWORDS = frozenset({
    "model", "tokenizer", "text", "recipe", "compiler", "queries", "checkpoint", "checkpoint_every", "restart",
    "surrogates", "progress", "distributed", "certify", "questions", "target", "start", "budget", "distractors",
    "redact", "max_bytes",
})  # fmt: skip
GROUPS = {"data": DataSettings, "training": TrainingSettings, "execution": ExecutionSettings}


@dataclass(frozen=True)
class CompileSettings:
    """Settings of one compilation; ``make_settings`` makes them from a flat list.

    Attributes:
        ratio: context tokens a buffer token.
        seed: of every random draw.
        data, training, execution: see these groups.
        compiler: the ``Settings`` of the compiler.

    Raises:
        InputError: a setting is out of range.
    """

    ratio: float = 16.0
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    compiler: SettingsGroup = field(default_factory=lambda: registry.get().Settings())

    def __post_init__(self) -> None:
        for name, kind in OWN.items():
            check(name, getattr(self, name), kind)
        object.__setattr__(self, "ratio", float(self.ratio))
        require(abs(self.ratio) < LARGEST, "ratio", self.ratio, f"finite, and less than {LARGEST:g}")
        require(self.ratio >= 1, "ratio", self.ratio, "at least 1 (16: one buffer token for 16 tokens of text)")
        require(self.seed in SEEDS, "seed", self.seed, f"from {SEEDS.start} to {SEEDS.stop - 1}")

    @property
    def groups(self) -> dict[str, SettingsGroup]:
        """The groups by the names of their fields."""
        return {name: getattr(self, name) for name in (*GROUPS, "compiler")}

    def flat(self) -> dict[str, Any]:
        """All settings by name."""
        own = {name: getattr(self, name) for name in OWN}
        return own | {name: value for group in self.groups.values() for name, value in asdict(group).items()}

    def replace(self, **changes: Any) -> CompileSettings:
        """The same settings with ``changes``, flat.

        Raises:
            InputError: a name that is none of these settings', or a value that is wrong.
        """
        rest = dict(changes)
        parts: dict[str, Any] = {name: rest.pop(name) for name in OWN if name in rest}
        for name, group in self.groups.items():
            in_group = {setting: rest.pop(setting) for setting in setting_types(type(group)) if setting in rest}
            parts[name] = replace(group, **in_group) if in_group else group
        if rest:
            raise InputError(f"unknown setting {next(iter(rest))!r}; there are {', '.join(sorted(self.flat()))}")
        return replace(self, **parts)

    def for_text(self, tokens: int) -> CompileSettings:
        """The settings for a text of so many tokens: what grows with it as numbers."""
        return replace(self, data=self.data.for_text(tokens), training=self.training.for_text(tokens))

    @property
    def effective_data(self) -> DataSettings:
        """What the data depends on: a stream without weight has no samples."""
        training, data = self.training, self.data
        return replace(
            data,
            general_queries=data.general_queries if training.general_weight else 0,
            self_study_questions=data.self_study_questions if training.self_study_weight else 0,
            across_questions=data.across_questions if training.across_weight else 0,
            rehearsal_questions=data.rehearsal_questions if training.rehearsal_weight else 0,
            # What an update does with the questions afterwards.
            carried_questions=0,
        )


OWN: dict[str, Any] = {"ratio": float, "seed": int}

DEFAULT_RECIPE, SMALLEST = "default", "fast"
RECIPES: dict[str, dict[str, Any]] = {
    DEFAULT_RECIPE: {},
    # For a model of 100 million parameters and a text of some pages: under half an hour on two cores.
    SMALLEST: {
        "steps": 110,
        "batch": AUTO,
        "evaluate_every": 55,
        "general_queries": 256,
        "self_study_questions": AUTO,
        "max_response_tokens": 48,
    },
    # Sections 3.4, 4.1, appendix A. 45 epochs of 2,000 queries and 2,000 reconstructions in batches of 64 (appendix A)
    # are 2,812 steps, and half of a batch is reconstruction. Section 4.1 has batches of 8: batch=4, steps=22500.
    "paper": {
        "steps": 2812,
        "batch": 32,
        "optimizer": "adamw",
        "learning_rate": 2e-5,
        "buffer_learning_rate": 2e-5,
        "momentum": 0.9,
        "buffer_init": "vocabulary",
        "rank": 8,
        "alpha": 16.0,
        "general_queries": 2000,
        "reconstruction_piece": 0,
        "reconstruction_weight": 1.0,
        "general_weight": 1.0,
        "self_study_questions": 0,
        "self_study_weight": 0.0,
        "held_out": 0.0,
        "patience": 0,
    },
}


def make_settings(
    recipe: str = "default", compiler: str | Compiler = registry.DEFAULT, **given: Any
) -> CompileSettings:
    """The settings of ``recipe`` with those ``given``. None means "not given".

    Args:
        recipe: a key of ``RECIPES``. Settings of another compiler in it do not count.
        compiler: a name or a ``Compiler``. Its own defaults stand before the recipe.

    Raises:
        InputError: unknown recipe, compiler or setting, or a value of another type or out of range.
    """
    if recipe not in list(RECIPES):
        raise InputError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}")
    chosen = registry.get(compiler)
    for name in given:
        require_setting(name, chosen)
    known = known_settings(chosen)
    overrides = {name: value for name, value in given.items() if value is not None}
    of_recipe = {name: value for name, value in RECIPES[recipe].items() if name in known}
    start = CompileSettings(compiler=chosen.Settings())
    return start.replace(**{**getattr(chosen, "defaults", {}), **of_recipe, **overrides})


def known_settings(compiler: str | Compiler = registry.DEFAULT) -> dict[str, Any]:
    """The settings of a compilation with ``compiler``, and the type of each.

    Raises:
        InputError: a setting of the compiler has a name that is taken.
    """
    chosen = registry.get(compiler)
    shared = dict(OWN) | {name: kind for group in GROUPS.values() for name, kind in setting_types(group).items()}
    own = setting_types(chosen.Settings)
    if taken := (shared.keys() | KEYWORDS) & own.keys():
        raise InputError(
            f"the compiler {chosen.name!r} has settings of its own whose names are taken: "
            f"{', '.join(sorted(taken))}; name them otherwise, or give them other defaults in its defaults"
        )
    return shared | own


def require_setting(name: str, compiler: str | Compiler = registry.DEFAULT) -> None:
    """Refuse a name that is no setting of a compilation with ``compiler``.

    Raises:
        InputError: naming the compiler whose setting it is, or the setting that is nearest to it.
    """
    chosen = registry.get(compiler)
    known = known_settings(chosen)
    if name in known:
        return
    other = registry.owner(name)
    if other is not None:
        raise InputError(f"{name} is a setting of the compiler {other!r}, and {chosen.name!r} has none: leave it out")
    near = "".join(f"did you mean {match}? " for match in get_close_matches(name, known, 1))
    raise InputError(f"unknown setting {name!r}; {near}there are {', '.join(sorted(known))}")
