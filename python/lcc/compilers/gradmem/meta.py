"""Meta-training: what the writes begin with is learned from how well their memories are read (GradMem, section 3).

The model is frozen. The paper trains it as well; its appendix I does not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...errors import DivergedError, InputError, MismatchError
from ...modeling.attention import attending
from ...modeling.fingerprint import fingerprint
from ...modeling.kv import KV
from ...utils.hashing import json_digest
from ...utils.outputs import is_file
from ...utils.random_state import sample_up_to, seeded
from ...utils.resumable import differing_names, sound
from ...utils.settings import SettingsGroup
from ...utils.tensor_files import load_tensors, save_tensors
from .attention import NAME
from .learned import OF_MODEL, Learned, writing_model
from .lessons import Batch, Lesson
from .writing import Form, GradMode, token_losses, write

STATE_FORMAT = "lcc-meta-training-1"


@dataclass(frozen=True)
class MetaSettings(SettingsGroup):
    """Settings of meta-training.

    Attributes:
        form: what is written, ``embeddings`` or ``kv``.
        tokens: memory tokens at most.
        ratio: text tokens a memory token, while there are not more than ``tokens``.
        writes: gradient steps on a text.
        write_rate: the step size that each of them begins with.
        grad_mode: see ``write``. ``none`` learns a projection alone, and ``first`` no LoRA.
        projection: learn what the model reads of a memory.
        lora_rank: of a LoRA that acts in writes alone; 0: none.
        steps: updates.
        batch: lessons of an update.
        learning_rate: of AdamW, after ``warmup`` updates; falls linearly to zero.
        text_weight: of the last write's loss beside the answers' loss.
        held_out: share of the texts that is measured on and not learned from; one at least.
        evaluate_every: updates between two measurements.
        seed: of every random draw.
    """

    form: Form = "kv"
    tokens: int = 64
    ratio: float = 8.0
    writes: int = 2
    write_rate: float = 1.0
    grad_mode: GradMode = "second"
    projection: bool = True
    lora_rank: int = 0
    steps: int = 500
    batch: int = 8
    learning_rate: float = 1e-2
    warmup: int = 20
    text_weight: float = 0.0
    held_out: float = 0.1
    evaluate_every: int = 25
    seed: int = 0

    def check_ranges(self) -> None:
        """Refuse what is out of range, and what nothing would be learned with."""
        self.require_count("tokens", "writes", "steps", "batch", "warmup", "evaluate_every")
        self.require_not_negative("lora_rank", "text_weight")
        self.require_more_than(0, "write_rate", "learning_rate", "ratio")
        self.require_share("held_out")
        if self.lora_rank and self.grad_mode != "second":
            raise InputError(f"a LoRA is not learned with grad_mode {self.grad_mode!r}: take 'second', or lora_rank=0")
        if self.grad_mode == "none" and not self.projection:
            raise InputError("grad_mode 'none' learns a projection alone, and projection is off: take 'first'")


@dataclass
class MetaTraining:
    """One meta-training.

    Attributes:
        model: frozen, with the LoRA of the writes inside it if there is one.
        prefix: K and V, rotated, of what stands before every memory.
        learned: what is trained, in place.
        applied: see ``write``.
        train, held_out: lessons.
        out: the file to write; the state of an unfinished training is beside it.
        identity: what a training must have in common to go on from that state.
    """

    model: PreTrainedModel
    prefix: KV
    learned: Learned
    applied: Callable[[], AbstractContextManager]
    train: Sequence[Lesson]
    held_out: Sequence[Lesson]
    settings: MetaSettings
    out: Path
    identity: dict[str, Any]

    def __post_init__(self) -> None:
        self.parameters = self.learned.parameters()
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=self.settings.learning_rate, weight_decay=0.0)
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.curve: list[dict[str, float]] = []

    @property
    def state(self) -> Path:
        """Where an unfinished training is kept."""
        return self.out.with_name(f"{self.out.name}.unfinished")

    def run(self, show: Callable[[dict[str, float]], None]) -> float:
        """Train to the end, or on from where a killed training stopped.

        The file has what was best on the held-out lessons, from the first measurement on.

        Args:
            show: called with each measurement.

        Returns:
            The loss of the best.

        Raises:
            DivergedError: the loss became NaN or infinite; the file and the state stand.
            MemoryFileError, MismatchError: the state cannot be read, or is another training's.
        """
        self._resume()
        if not self.curve:
            self._measure(show)
        while self.step < self.settings.steps:
            began = time.monotonic()
            self._update()
            self.seconds += time.monotonic() - began
            if self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps:
                self._measure(show)
        self.state.unlink(missing_ok=True)
        return self.best

    def loss(self, lessons: Sequence[Lesson], grad_mode: GradMode) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of the lessons' answers, and that of the texts before each write, (writes,)."""
        settings, learned = self.settings, self.learned
        batch = Batch.of(lessons, settings.ratio, settings.tokens, self.model.device)
        start = learned.memories(len(lessons), batch.tokens)
        written = write(
            self.model, self.prefix, start, batch.texts, batch.counted, learned.rates, grad_mode, learned.used,
            self.applied,
        )  # fmt: skip
        memory = learned.used(written.memory)
        losses = token_losses(self.model, self.prefix, memory, batch.reads, batch.answers)
        return losses.mean(), written.losses.mean(1)

    def _update(self) -> None:
        """One update, on lessons drawn from a seed of its own."""
        settings = self.settings
        lessons = sample_up_to(random.Random(f"{settings.seed} {self.step}"), self.train, settings.batch)
        answers, texts = self.loss(lessons, settings.grad_mode)
        (answers + settings.text_weight * texts[-1]).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        warm, left = min(1.0, (self.step + 1) / settings.warmup), 1 - self.step / settings.steps
        self.optimizer.param_groups[0]["lr"] = settings.learning_rate * warm * left
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def _measure(self, show: Callable[[dict[str, float]], None]) -> None:
        """Measure the held-out lessons, keep what is best, and the state."""
        size, answers, texts = self.settings.batch, 0.0, 0.0
        for first in range(0, len(self.held_out), size):
            lessons = self.held_out[first : first + size]
            with torch.no_grad():
                answer, text = self.loss(lessons, "none")
            answers += answer.item() * len(lessons) / len(self.held_out)
            texts += text[-1].item() * len(lessons) / len(self.held_out)
        if not math.isfinite(answers):
            raise DivergedError(f"the loss is {answers} after {self.step} updates: take a smaller learning rate")
        self.curve.append({"step": self.step, "loss": answers, "text_loss": texts, "seconds": round(self.seconds, 1)})
        if answers < self.best:
            self.best = answers
            self.learned.save(self.out, self.identity["model"], self.identity["settings"], self.curve)
        self._save()
        show(self.curve[-1])

    def _save(self) -> None:
        tensors = {f"parameter {name}": tensor for name, tensor in self.parameters.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key} {name}": value for key, value in self.optimizer.state[parameter].items()}
        metadata = {"step": self.step, "seconds": self.seconds, "curve": self.curve, "best": self.best}
        save_tensors(self.state, STATE_FORMAT, tensors, metadata | {"identity": self.identity})

    def _resume(self) -> None:
        if not is_file(self.state):
            return
        tensors, metadata = load_tensors(self.state, STATE_FORMAT)
        with sound(self.state):
            if differing := differing_names(metadata["identity"], self.identity):
                raise MismatchError(
                    f"{self.state} is of a meta-training that differs in {', '.join(differing)}: finish that one with "
                    "its own options, or delete the file"
                )
            self.step, self.seconds = metadata["step"], metadata["seconds"]
            self.curve, self.best = metadata["curve"], metadata["best"]
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(tensors.pop(f"parameter {name}"))
                own = [key for key in tensors if key.split(" ", 1)[1] == name]
                self.optimizer.state[parameter] = {key.split(" ", 1)[0]: tensors[key] for key in own}


@contextmanager
def meta_training(
    model: PreTrainedModel,
    prefix: KV,
    train: Sequence[Lesson],
    held_out: Sequence[Lesson],
    settings: MetaSettings,
    out: Path,
) -> Iterator[MetaTraining]:
    """A meta-training, inside a block in which the model is frozen; the block restores the model.

    The start is made of the first text, see ``Learned.of_text``.
    """
    digests = fingerprint(model)
    identity = {
        "model": {name: digests[name] for name in OF_MODEL},
        "settings": asdict(settings),
        "lessons": json_digest([asdict(lesson) for lesson in (*train, *held_out)]),
    }
    rates = [settings.write_rate] * settings.writes
    attention = attending(model, NAME) if settings.grad_mode == "second" else nullcontext()
    lora_model = writing_model(model, {}, settings.lora_rank)
    with seeded(model.device, settings.seed), lora_model as (applied, lora), attention:
        with torch.no_grad():
            learned = Learned.of_text(model, prefix, train[0].text_ids, settings.tokens, settings.form, rates)
        learned = learned.with_projection() if settings.projection else learned
        learned.lora = lora
        yield MetaTraining(model, prefix, learned, applied, train, held_out, settings, out, identity)
