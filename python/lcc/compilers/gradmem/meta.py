"""Meta-training: what the writes begin with is learned from how well their memories are read (GradMem, section 3).

The model is frozen. The paper trains it as well; its appendix I does not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ...errors import InputError
from ...modeling.attention import attending
from ...modeling.fingerprint import model_digests
from ...modeling.kv import KV
from ...utils.hashing import json_digest
from ...utils.random_state import seeded
from ...utils.settings import SettingsGroup
from ...utils.values import require
from ..learning import Learning
from .attention import NAME
from .learned import Learned, writing_model
from .lessons import Batch, Lesson, draw
from .starts import text_starts
from .writing import Form, GradMode, Tensors, token_losses


@dataclass(frozen=True)
class MetaSettings(SettingsGroup):
    """Settings of meta-training.

    Attributes:
        form: what is written, ``embeddings`` or ``kv``.
        start: where writes start. ``text``: from the text itself, see ``text_starts``; what is learned then serves
            memories of any number of tokens. ``learned``: from one start for all texts (the paper).
        tokens: memory tokens of a learned start; no memory has more.
        ratios: text tokens a memory token; each update draws one of them.
        writes: gradient steps on a text.
        write_rate: the step size that each of them begins with.
        grad_mode: see ``write``. ``none`` learns a projection alone.
        projection: learn what the model reads of a memory.
        lora_rank: of a LoRA that makes the start of the text, which is of K and V then, or acts in the writes from a
            learned start, which takes ``second``; 0: none.
        steps: updates.
        batch: texts of an update.
        asked: queries about each of them at most.
        learning_rate: of AdamW, after ``warmup`` updates; falls linearly to zero.
        text_weight: of the last write's loss beside the answers' loss.
        held_out: share of the texts that is measured on and not learned from; one at least.
        evaluate_every: updates between two measurements.
        seed: of every random draw.
    """

    form: Form = "kv"
    start: Literal["text", "learned"] = "text"
    tokens: int = 64
    ratios: tuple[float, ...] = (8.0, 16.0)
    writes: int = 2
    write_rate: float = 8.0
    grad_mode: GradMode = "first"
    projection: bool = True
    lora_rank: int = 16
    steps: int = 500
    batch: int = 4
    asked: int = 12
    learning_rate: float = 5e-3
    warmup: int = 20
    text_weight: float = 0.0
    held_out: float = 0.1
    evaluate_every: int = 25
    seed: int = 0

    def check_ranges(self) -> None:
        """Refuse what is out of range, and what nothing would be learned with."""
        self.require_count("tokens", "writes", "steps", "batch", "asked", "warmup", "evaluate_every")
        self.require_not_negative("lora_rank", "text_weight")
        self.require_more_than(0, "write_rate", "learning_rate")
        self.require_share("held_out")
        require(bool(self.ratios) and min(self.ratios) >= 1, "ratios", self.ratios, "numbers of at least 1")
        reached = {"text": self.form == "kv" and self.grad_mode != "none", "learned": self.grad_mode == "second"}
        if self.lora_rank and not reached[self.start]:
            raise InputError(
                f"a LoRA is not learned with grad_mode {self.grad_mode!r}, form {self.form!r} and start "
                f"{self.start!r}: take 'first', 'kv' and 'text', or lora_rank=0"
            )
        if self.grad_mode == "none" and not self.projection:
            raise InputError("grad_mode 'none' learns a projection alone, and projection is off: take 'first'")


class MetaTraining(Learning):
    """One meta-training.

    Attributes:
        model: frozen, with the LoRA inside it if there is one.
        prefix: K and V, rotated, of what stands before every memory.
        learned: what is trained, in place.
        applied: makes the context in which the LoRA acts.
        train, held_out: lessons, in the order of their texts' lengths.
    """

    state_format = "lcc-meta-training-1"

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: KV,
        learned: Learned,
        applied: Callable[[], AbstractContextManager],
        train: Sequence[Lesson],
        held_out: Sequence[Lesson],
        settings: MetaSettings,
        out: Path,
        identity: dict[str, Any],
    ):
        self.model, self.prefix, self.learned, self.applied = model, prefix, learned, applied
        self.train, self.held_out = train, held_out
        parameters = learned.parameters()
        for parameter in parameters.values():
            parameter.requires_grad_()
        optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, weight_decay=0.0)
        super().__init__(parameters, [optimizer], settings, out, identity)

    def loss(self, lessons: Sequence[Lesson], ratio: float, grad_mode: GradMode) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of the lessons' answers, and that of the texts before each write, (writes,)."""
        model, prefix, learned = self.model, self.prefix, self.learned
        batch = Batch.of(lessons, ratio, model.device)
        texts, tokens = (batch.texts, batch.counted), int(min(batch.tokens, learned.tokens))
        start = learned.memories(model, prefix, *texts, tokens, self.applied)
        written = learned.write(model, prefix, start, *texts, learned.rates, grad_mode, self.applied)
        memory = {name: tensor[batch.owners] for name, tensor in learned.used(written.memory).items()}
        return token_losses(model, prefix, memory, batch.reads, batch.answers).mean(), written.losses.mean(1)

    def backward(self) -> None:
        """Of the loss of lessons drawn from a seed of the update's own."""
        settings = self.settings
        rng = random.Random(f"{settings.seed} {self.step}")
        lessons = draw(rng, self.train, settings.batch, settings.asked)
        answers, texts = self.loss(lessons, rng.choice(settings.ratios), settings.grad_mode)
        (answers + settings.text_weight * texts[-1]).backward()

    def measure(self) -> tuple[float, dict[str, float]]:
        """The held-out lessons' mean loss an answer token, and that of their texts before the last write."""
        size, ratios, answers, texts = self.settings.batch, self.settings.ratios, 0.0, 0.0
        asked = len(ratios) * sum(len(lesson.asked) for lesson in self.held_out)
        for ratio, first in product(ratios, range(0, len(self.held_out), size)):
            lessons = self.held_out[first : first + size]
            with torch.no_grad():
                answer, text = self.loss(lessons, ratio, "none")
            answers += answer.item() * sum(len(lesson.asked) for lesson in lessons) / asked
            texts += text[-1].item() * len(lessons) / len(self.held_out) / len(ratios)
        return answers, {"loss": answers, "text_loss": texts}

    def keep(self) -> None:
        """Write what is learned."""
        self.learned.save(self.out, self.identity["model"], self.identity["settings"], self.curve)


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

    A learned start begins as that of the longest text.
    """
    identity = {
        "model": model_digests(model),
        "settings": asdict(settings) | {"ratios": list(settings.ratios)},
        "lessons": json_digest([asdict(lesson) for lesson in (*train, *held_out)]),
    }
    attention = attending(model, NAME) if settings.grad_mode == "second" else nullcontext()
    lora_model = writing_model(model, {}, settings.lora_rank)
    with seeded(model.device, settings.seed), lora_model as (applied, lora), attention:
        learned = Learned.of_rates(model, settings.form, [settings.write_rate] * settings.writes)
        if settings.start == "learned":
            learned.start = _first_start(model, prefix, train[-1], settings)
        learned = learned.with_projection(model) if settings.projection else learned
        learned.lora = lora
        yield MetaTraining(model, prefix, learned, applied, train, held_out, settings, out, identity)


@torch.no_grad()
def _first_start(model: PreTrainedModel, prefix: KV, lesson: Lesson, settings: MetaSettings) -> Tensors:
    ids = torch.tensor([lesson.text_ids], device=model.device)
    start = text_starts(model, prefix, ids, torch.ones_like(ids, dtype=torch.bool), settings.tokens, settings.form)
    return {name: tensor[0] for name, tensor in start.items()}
