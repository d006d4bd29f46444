"""Training of a consolidator over many texts, with LCC's loss: the model behind the text against behind the latents."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import lcc_kernels as lk

from ...data.samples import Sample
from ...errors import DivergedError, MismatchError
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
from ...utils.outputs import is_file
from ...utils.random_state import seeded
from ...utils.resumable import differing_names, sound
from ...utils.settings import SettingsGroup
from ...utils.tensor_files import load_tensors, save_tensors
from ...utils.values import require
from .consolidator import FORMS, Consolidator, Form, ReadText, Trained
from .learned import save
from .lessons import Lessons, Text

STATE_FORMAT = "lcc-flashmem-training-1"
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


@dataclass
class ConsolidatorTraining:
    """One training, which goes on where it stopped.

    Attributes:
        prefix: K and V of what stands before the text.
        packed: runs samples through the model.
        out: the trained file; what is needed to go on lies beside it until the end.
        identity: what two runs must have in common to go on from that state.
    """

    model: PreTrainedModel
    prefix: KV
    packed: PackedDecoder
    consolidator: Consolidator
    lessons: Lessons
    settings: ConsolidatorSettings
    out: Path
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        self.parameters = dict(self.consolidator.named_parameters())
        matrices = [parameter for parameter in self.parameters.values() if parameter.ndim == 2]
        vectors = [parameter for parameter in self.parameters.values() if parameter.ndim != 2]
        rate = self.settings.learning_rate
        self.optimizers = [
            build_optimizer(matrices, rate, MOMENTUM, "muon"),
            build_optimizer(vectors, rate, MOMENTUM),
        ]
        self.training = TrainingSettings(general_weight=self.settings.general_weight)
        self.held_out = self.lessons.held_out()
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.curve: list[dict[str, float]] = []

    @property
    def state(self) -> Path:
        """Where an unfinished training is kept."""
        return self.out.with_name(f"{self.out.name}.unfinished")

    def run(self, show: Callable[[dict[str, float]], None]) -> float:
        """Train to the end, or on from where a killed training stopped.

        The file has what was best on the held-out texts, from the first measurement on.

        Args:
            show: called with each measurement.

        Returns:
            The mean held-out KL of the best, in nats a token.

        Raises:
            DivergedError: the loss became NaN or infinite; the file and the state stand.
            MemoryFileError, MismatchError: the state cannot be read, or is another training's.
        """
        self._resume()
        if not self.curve:
            self._measure({}, show)
        while self.step < self.settings.steps:
            began = time.process_time()
            loss = self._update()
            self.seconds += time.process_time() - began
            if self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps:
                self._measure({"loss": loss}, show)
        self.state.unlink(missing_ok=True)
        return self.best

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

    def _update(self) -> float:
        """One update, on texts of its own; returns the mean loss."""
        settings, total = self.settings, 0.0
        for place in range(settings.batch):
            number = self.step * settings.batch + place
            ratio = settings.ratio(random.Random(f"{settings.seed} {number}"))
            loss = self.loss(self.lessons.draw(number), ratio) / settings.batch
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        warm, left = min(1.0, (self.step + 1) / settings.warmup), 1 - self.step / settings.steps
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = settings.learning_rate * warm * left
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return total

    @torch.no_grad()
    def _measure(self, of_step: dict[str, float], show: Callable[[dict[str, float]], None]) -> None:
        """Measure the held-out texts, keep what is best, and the state."""
        point = {"step": self.step} | of_step
        for ratio in MEASURED:
            losses = [self.loss(text, ratio).item() for text in self.held_out]
            point[f"held_out_{ratio:g}"] = sum(losses) / len(losses)
        mean = sum(point[f"held_out_{ratio:g}"] for ratio in MEASURED) / len(MEASURED)
        if not math.isfinite(mean):
            raise DivergedError(f"the loss is {mean} after {self.step} updates: take a smaller learning rate")
        self.curve.append({name: round(value, 4) for name, value in point.items()} | {"seconds": round(self.seconds)})
        if mean < self.best:
            self.best = mean
            save(self.out, self.consolidator, self.identity["model"], self.identity["settings"], self.curve)
        self._save()
        show(self.curve[-1])

    def _states_of(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        """What the parameter's optimizer keeps; writes through."""
        return self.optimizers[parameter.ndim != 2].state[parameter]

    def _save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter {name}"] = parameter
            tensors |= {f"{key} {name}": value for key, value in self._states_of(parameter).items()}
        metadata = {"step": self.step, "seconds": self.seconds, "curve": self.curve, "best": self.best}
        save_tensors(self.state, STATE_FORMAT, tensors, metadata | {"identity": self.identity})

    def _resume(self) -> None:
        if not is_file(self.state):
            return
        tensors, metadata = load_tensors(self.state, STATE_FORMAT)
        with sound(self.state):
            if differing := differing_names(metadata["identity"], self.identity):
                raise MismatchError(
                    f"{self.state} is of a training that differs in {', '.join(differing)}: finish that one with its "
                    "own options, or delete the file"
                )
            self.step, self.seconds = metadata["step"], metadata["seconds"]
            self.curve, self.best = metadata["curve"], metadata["best"]
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(tensors.pop(f"parameter {name}"))
                own = [key for key in tensors if key.split(" ", 1)[1] == name]
                self._states_of(parameter).update((key.split(" ", 1)[0], tensors[key]) for key in own)


@contextmanager
def consolidator_training(
    model: PreTrainedModel, prefix_ids: Sequence[int], lessons: Lessons, settings: ConsolidatorSettings, out: Path
) -> Iterator[ConsolidatorTraining]:
    """A training, inside a block in which the model is frozen; the block restores the model."""
    identity = {"model": model_digests(model), "settings": asdict(settings), "lessons": lessons.identity}
    with seeded(model.device, settings.seed), frozen(model):
        consolidator = FORMS[settings.form](model, settings.rank, settings.trained)
        prefix, packed = prefill(model, prefix_ids), PackedDecoder(model)
        yield ConsolidatorTraining(
            model, prefix, packed, consolidator, lessons, settings, out, json.loads(json.dumps(identity))
        )
