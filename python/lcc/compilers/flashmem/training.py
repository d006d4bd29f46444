"""Training of a consolidator over many texts, with LCC's loss: the model behind the text against behind the latents."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import lcc_kernels as lk

from ...data.samples import Sample
from ...modeling.fingerprint import model_digests
from ...modeling.kv import KV
from ...modeling.lora import frozen
from ...modeling.packed_decoder import PackedDecoder, PackedRow
from ...modeling.prefill import prefill
from ...modeling.scoring import state_divergence
from ...training.loss import token_weights
from ...training.optimizers import build_optimizer
from ...training.settings import TrainingSettings
from ...training.student import supervised_rows
from ...utils.random_state import seeded
from ...utils.settings import SettingsGroup
from ...utils.values import require
from ..learning import Learning
from .consolidator import FORMS, Consolidator, Form, ReadText, Trained
from .learned import save
from .lessons import Lessons, Text

# Ratios that are measured.
MEASURED = (8.0, 16.0)
MOMENTUM = 0.9


@dataclass(frozen=True)
class ConsolidatorSettings(SettingsGroup):
    """Settings of the training of a consolidator.

    Attributes:
        form: ``per_layer``, or ``last`` (the paper's).
        rank, trained: see ``Consolidator``.
        least_ratio, most_ratio: text tokens a latent; each text of an update draws one between them, on a log scale.
        steps: updates.
        batch: texts of an update.
        queries: about a text at most.
        learning_rate: of Muon for matrices, and of AdamW for vectors, after ``warmup`` updates; falls linearly to zero.
        general_weight: of queries that are not about the text, beside those that are.
        evaluate_every: updates between two measurements.
        seed: of every random draw.
    """

    form: Form = "per_layer"
    rank: int = 64
    trained: Trained = "all"
    least_ratio: float = 4.0
    most_ratio: float = 32.0
    steps: int = 1500
    batch: int = 4
    queries: int = 14
    learning_rate: float = 2e-2
    warmup: int = 10
    general_weight: float = 0.25
    evaluate_every: int = 100
    seed: int = 0

    def check_ranges(self) -> None:
        """Refuse what is out of range."""
        self.require_count("rank", "steps", "batch", "queries", "warmup", "evaluate_every")
        self.require_more_than(0, "learning_rate")
        self.require_not_negative("general_weight", "seed")
        ratios = (self.least_ratio, self.most_ratio)
        require(1 <= ratios[0] <= ratios[1], "ratios", ratios, "at least 1, and the least one first")

    def ratio(self, rng: random.Random) -> float:
        """A ratio for one text."""
        return math.exp(rng.uniform(math.log(self.least_ratio), math.log(self.most_ratio)))


class ConsolidatorTraining(Learning):
    """One training.

    Attributes:
        prefix: K and V of what stands before the text.
        packed: runs samples through the model.
    """

    state_format = "lcc-flashmem-training-1"

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: KV,
        consolidator: Consolidator,
        lessons: Lessons,
        settings: ConsolidatorSettings,
        out: Path,
        identity: dict[str, Any],
    ):
        self.model, self.prefix, self.packed = model, prefix, PackedDecoder(model)
        self.consolidator, self.lessons, self.held_out = consolidator, lessons, lessons.held_out()
        self.training = TrainingSettings(general_weight=settings.general_weight)
        parameters = dict(consolidator.named_parameters())
        matrices = [parameter for parameter in parameters.values() if parameter.ndim == 2]
        vectors = [parameter for parameter in parameters.values() if parameter.ndim != 2]
        rate = settings.learning_rate
        optimizers = [build_optimizer(matrices, rate, MOMENTUM, "muon"), build_optimizer(vectors, rate, MOMENTUM)]
        super().__init__(parameters, optimizers, settings, out, identity)

    def loss(self, text: Text, ratio: float) -> torch.Tensor:
        """KL(behind the text || behind its latents), the weighted mean over streams, in nats a token."""
        read = ReadText.of(self.model, self.prefix, text.ids)
        with torch.no_grad():
            teacher = self._states(read.kv, text.samples)
        written = self.consolidator.write(self.model, read, math.ceil(len(text.ids) / ratio))
        student = self._states(written.rotated(self.model, self.prefix.end).after(self.prefix), text.samples)
        return state_divergence(self.model, student, teacher, token_weights(text.samples, self.training), "kl")

    def _states(self, visible: KV, samples: Sequence[Sample]) -> torch.Tensor:
        """Last hidden states where responses are predicted behind ``visible``, (supervised tokens, H)."""
        model, device = self.model, self.model.device
        ids = torch.tensor([[token for sample in samples for token in sample.input_ids]], device=device)
        lengths = [len(sample.input_ids) for sample in samples]
        row = PackedRow(lk.BottleneckLayout(0, 0, len(visible), lengths, False), ((0, visible),))
        positions = torch.cat([visible.end + torch.arange(length) for length in lengths]).to(device)
        read = supervised_rows(samples).to(device)
        rows = [row] * (model.config.num_hidden_layers - 1) + [replace(row, read=read)]
        return self.packed(model.get_input_embeddings()(ids), positions, rows)[0, read]

    def backward(self) -> None:
        """Of the mean loss of texts of the update's own."""
        settings = self.settings
        for place in range(settings.batch):
            number = self.step * settings.batch + place
            ratio = settings.ratio(random.Random(f"{settings.seed} {number}"))
            (self.loss(self.lessons.draw(number), ratio) / settings.batch).backward()

    @torch.no_grad()
    def measure(self) -> tuple[float, dict[str, float]]:
        """The mean KL of the held-out texts, and that at each ratio."""
        figures = {}
        for ratio in MEASURED:
            losses = [self.loss(text, ratio).item() for text in self.held_out]
            figures[f"held_out_{ratio:g}"] = round(sum(losses) / len(losses), 4)
        return sum(figures.values()) / len(MEASURED), figures

    def keep(self) -> None:
        """Write the consolidator."""
        save(self.out, self.consolidator, self.identity["model"], self.identity["settings"], self.curve)


@contextmanager
def consolidator_training(
    model: PreTrainedModel, prefix_ids: Sequence[int], lessons: Lessons, settings: ConsolidatorSettings, out: Path
) -> Iterator[ConsolidatorTraining]:
    """A training, inside a block in which the model is frozen; the block restores the model."""
    identity = {"model": model_digests(model), "settings": asdict(settings), "lessons": lessons.identity}
    with seeded(model.device, settings.seed), frozen(model):
        consolidator = FORMS[settings.form](model, settings.rank, settings.trained)
        prefix = prefill(model, prefix_ids)
        yield ConsolidatorTraining(
            model, prefix, consolidator, lessons, settings, out, json.loads(json.dumps(identity))
        )
