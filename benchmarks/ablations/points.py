"""What ``benchmarks.ablations`` trains and asks: the streams, the ablations with their values, and the documents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.fidelity.options import SMOKE as FIDELITY_SMOKE
from benchmarks.fidelity.study import draw_documents
from lcc.evaluation import Example
from lcc.pipeline.settings import CompileSettings, make_settings
from lcc.synthetic.exam import general_exam

SEED = 2
# The paper's mixture (section 4.1): 2,000 queries and 2,000 reconstructions, each sample counting alike.
SAMPLES, MOST_QUERIES = 2000, 8000
TWO = {"self_study_questions": 0, "self_study_weight": 0.0}
STREAMS: dict[str, dict[str, Any]] = {
    "three streams": {},
    "two streams": TWO,
    "two streams, 8,000 queries": TWO | {"general_queries": 8000, "general_weight": 8000 / SAMPLES},
}
DROPPED = "on, dropped"
ABLATIONS: dict[str, dict[int | str, dict[str, Any]]] = {
    "ratio": {value: {"ratio": float(value)} for value in (2, 4, 8, 16, 32)},
    "general": {
        value: {"general_queries": value, "general_weight": value / SAMPLES} for value in (0, 250, 1000, 2000, 8000)
    },
    "reconstruction": {value: {"reconstruction_weight": value / SAMPLES} for value in (0, 500, 1000, 2000)},
    "loss": {value: {"loss": value} for value in ("kl", "mse")},
    "coupled": {value: {"coupled": value != "off"} for value in ("off", "on", DROPPED)},
    "prefix": {"seen": {"keep_prefix": True}, "hidden": {"keep_prefix": False}},
    "buffer_init": {value: {"buffer_init": value} for value in ("vocabulary", "sampled", "even")},
    "rank": {value: {"rank": value, "alpha": float(value)} for value in (1, 2, 8, 64)},
    "targets": {
        "qk": {"targets": ("q_proj", "k_proj")},
        "qv": {"targets": ("q_proj", "v_proj")},
        "kv": {"targets": ("k_proj", "v_proj")},
        "qkvo": {"targets": None},
        "qkvo + MLP": {
            "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        },
    },
}
ABLATED = {
    "three streams": tuple(ABLATIONS),
    "two streams": ("general", "reconstruction", "loss", "coupled"),
    "two streams, 8,000 queries": ("reconstruction",),
}
# Each training is as long as any other.
SHARED = {"steps": 120, "evaluate_every": 55, "rank": 64, "alpha": 64.0, "patience": 0, "held_out": 0.0}
SMOKE = FIDELITY_SMOKE | SHARED | {"steps": 4}


@dataclass(frozen=True)
class Point:
    """One value of one ablation; ``base`` if it changes nothing."""

    streams: str
    ablation: str
    value: int | str
    settings: CompileSettings
    base: bool

    @property
    def place(self) -> tuple[str, str, int | str]:
        """What tells its row from all others."""
        return self.streams, self.ablation, self.value

    @property
    def lora_on(self) -> bool:
        """Whether the LoRA stays on while questions are answered."""
        return self.settings.compiler.coupled and self.value != DROPPED


@dataclass(frozen=True)
class Plan:
    """What the whole run shares; small enough to be sent to every worker."""

    folder: Path
    documents: int = 4
    words: int = 300
    general: int = 20
    most_queries: int = MOST_QUERIES
    shared: dict[str, Any] = field(default_factory=lambda: SHARED)

    def settings(self, streams: str, changes: dict[str, Any]) -> CompileSettings:
        """Those that all points share, with the paper's mixture and a point's own."""
        mixture = {"general_queries": SAMPLES, "general_weight": 1.0, "reconstruction_weight": 1.0, "seed": SEED}
        return make_settings(**self.shared | mixture | STREAMS[streams]).replace(**changes)

    def points(self, only: Sequence[str]) -> list[Point]:
        """Those of the ablations ``only``; every ablation of a stream has its base among its values."""
        points = []
        for streams, ablations in ABLATED.items():
            base = self.settings(streams, {})
            for ablation in ablations:
                for value, changes in ABLATIONS[ablation].items() if ablation in only else ():
                    settings = self.settings(streams, changes)
                    points.append(Point(streams, ablation, value, settings, settings == base))
        return points

    @cached_property
    def examples(self) -> list[Example]:
        """Questions about the documents, and general queries beside them."""
        drawn = draw_documents(self.documents, 0, [self.words], self.general, SEED)
        return [example for document in drawn for example in document]

    @cached_property
    def texts(self) -> list[str]:
        """The documents."""
        return list(dict.fromkeys(example.context for example in self.examples))

    @cached_property
    def queries(self) -> list[str]:
        """Context-agnostic queries to train on, none of which is asked in the end."""
        asked = {example.question for example in self.examples if example.general}
        return [query.text for query in general_exam(random.Random(SEED), self.most_queries, sorted(asked))]
