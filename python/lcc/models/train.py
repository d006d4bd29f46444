"""Train the embedded model from nothing: ``python -m lcc.models.train --out DIR`` (hours on two cores).

The curriculum: copy random words until copying circuits stand, then documents whose people have one, two and four
attributes, then questions that join sentences, count, or say "she", then full documents under a decaying learning rate,
some of 2,000 tokens, and last a rehearsal of what is weakest.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from .lessons import (
    asking_lesson,
    closed_book_lesson,
    copying_lesson,
    document_lesson,
    key_value_lesson,
    needle_lesson,
    repeating_lesson,
)
from .packing import IGNORED, KINDS, Batch, Lesson, Packer
from .tokenizer import WINDOW, build_tokenizer

MUON_LR, ADAMW_LR, WARMUP_STEPS, DECAYING_SHARE = 0.02, 3e-3, 40, 0.7


@dataclass(frozen=True)
class Group:
    """Lessons of like length, packed together, and their weight in a step's loss."""

    weight: float
    lessons: list[Lesson]


@dataclass(frozen=True)
class Stage:
    """Up to ``steps`` batches from ``lessons``.

    A stage with a ``goal`` ends once that kind of exercise has that accuracy; one without decays its learning rate.
    ``rate`` scales the learning rates.
    """

    name: str
    steps: int
    goal: tuple[str, float] | None
    lessons: Callable[[random.Random], list[Group]]
    rate: float = 1.0


def _copying(rng: random.Random) -> list[Group]:
    return [Group(1.0, [copying_lesson(rng, rng.randint(16, 64)) for _ in range(32)])]


def _short_documents(rows: int, people: tuple[int, int], attributes: tuple[int, int], alike: float) -> Callable:
    """Batches of same-sized documents with a text of random words and a closed book among them."""

    def draw(rng: random.Random) -> list[Group]:
        shape = rng.randint(*people), rng.randint(*attributes)
        documents = [document_lesson(rng, *shape, rng.random() < alike, repeat=i % 4 == 0) for i in range(rows)]
        return [Group(1.0, [*documents, copying_lesson(rng, rng.randint(16, 96)), closed_book_lesson(rng)])]

    return draw


def _joins(rng: random.Random) -> list[Group]:
    """Small documents with everything that takes more than one sentence, and short lookups."""
    shape = rng.randint(3, 6), rng.randint(3, 5)
    documents = [document_lesson(rng, *shape, rng.random() < 0.5, i % 4 == 0, reasoning=3) for i in range(8)]
    lookups = [needle_lesson(rng, 3, 4), needle_lesson(rng, 4, 5), key_value_lesson(rng, rng.randint(8, 40), True)]
    others = [copying_lesson(rng, rng.randint(16, 96)), closed_book_lesson(rng)]
    return [Group(1.0, [*documents, *lookups, *others])]


def _full_documents(rng: random.Random) -> list[Group]:
    """Every step asks about long documents, repeats some, looks up, copies random words, and does without a text."""
    shape = rng.randint(5, 8), rng.randint(6, 8)
    words = rng.choice((20, 50, None))
    return [
        Group(1.0, [document_lesson(rng, *shape, rng.random() < 0.3, reasoning=2) for _ in range(6)]),
        Group(0.4, [repeating_lesson(rng, *shape) for _ in range(2)]),
        Group(0.4, [needle_lesson(rng, *shape), key_value_lesson(rng, rng.randint(40, 120))]),
        Group(0.4, [copying_lesson(rng, rng.randint(16, 80), words) for _ in range(6)]),
        Group(0.1, [closed_book_lesson(rng) for _ in range(3)]),
    ]


def _long_documents(rng: random.Random) -> list[Group]:
    """One text of up to 2,000 tokens of each kind, one that is repeated, and the shorter ones beside them."""
    people, attributes = rng.randint(12, 26), rng.randint(5, 7)
    texts = [
        document_lesson(rng, people, attributes, False, reasoning=3),
        needle_lesson(rng, people, attributes),
        key_value_lesson(rng, rng.randint(120, 380)),
    ]
    repeated = rng.choice((repeating_lesson(rng, people, attributes), key_value_lesson(rng, 80, repeat=True)))
    return [Group(0.5, [text]) for text in (*texts, repeated)] + _full_documents(rng)[:1]


def _rehearsal(rng: random.Random) -> list[Group]:
    """What full documents alone leave weakest: repeating without a slip, and asking only what the text answers."""
    shape = rng.randint(5, 8), rng.randint(6, 8)
    return [
        Group(0.7, [document_lesson(rng, *shape, rng.random() < 0.3, reasoning=2) for _ in range(3)]),
        Group(1.0, [repeating_lesson(rng, *shape) for _ in range(4)]),
        Group(0.7, [asking_lesson(rng, *shape) for _ in range(4)]),
        Group(0.4, [needle_lesson(rng, *shape), key_value_lesson(rng, rng.randint(40, 120), True)]),
        Group(0.1, [closed_book_lesson(rng) for _ in range(3)]),
    ]


def curriculum(scale: float = 1.0) -> tuple[Stage, ...]:
    """The stages; ``scale`` shortens or lengthens the last three."""
    return (
        Stage("copy", 900, ("repeat", 0.97), _copying),
        Stage("1 attribute", 600, ("question", 0.95), _short_documents(24, (3, 6), (1, 1), alike=1.0)),
        Stage("2 attributes", 500, ("question", 0.95), _short_documents(16, (3, 6), (2, 2), alike=0.8)),
        Stage("4 attributes", 400, ("question", 0.95), _short_documents(10, (4, 7), (3, 5), alike=0.5)),
        Stage("joins", 1500, ("join", 0.95), _joins),
        Stage("documents", int(900 * scale), None, _full_documents),
        Stage("long documents", int(150 * scale), None, _long_documents, rate=0.5),
        Stage("rehearsal", int(240 * scale), None, _rehearsal, rate=0.5),
    )


def build_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A 1.6 M-parameter Llama: 6.4 MB."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [torch.optim.Muon(matrices, lr=MUON_LR), torch.optim.AdamW(others, lr=ADAMW_LR, weight_decay=0.0)]


def step_loss(model: LlamaForCausalLM, batch: Batch, end: int) -> tuple[torch.Tensor, dict[str, float]]:
    """Weighted mean cross-entropy of the supervised tokens, and token accuracy (end tokens left out) by kind."""
    hidden = model.model(
        input_ids=batch.input_ids,
        attention_mask=batch.visible,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    chosen = batch.labels != IGNORED
    logits, labels, weights = model.lm_head(hidden[chosen]), batch.labels[chosen], batch.weights[chosen]
    loss = (cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum()
    right, kinds, content = logits.argmax(-1) == labels, batch.kinds[chosen], labels != end
    accuracy = {}
    for index, kind in enumerate(KINDS):
        mine = right[(kinds == index) & content]
        if len(mine):
            accuracy[kind] = mine.float().mean().item()
    return loss, accuracy


class Trainer:
    """Runs the curriculum stage by stage; a killed run goes on after the last finished stage."""

    def __init__(self, out: Path, seed: int, log_every: int = 20):
        torch.manual_seed(seed)
        self.out, self.seed, self.log_every = out, seed, log_every
        self.tokenizer = build_tokenizer()
        self.packer = Packer(self.tokenizer)
        self.model = build_model(self.tokenizer)
        self.log_path = out / "training_log.jsonl"
        out.mkdir(parents=True, exist_ok=True)

    def run(self, stages: tuple[Stage, ...]) -> None:
        """Train through ``stages`` and leave model, tokenizer and log in ``out``."""
        self.tokenizer.save_pretrained(self.out)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as progress:
            for number, stage in enumerate(stages):
                folder = self.out / "stages" / str(number)
                if folder.exists():
                    self.model = LlamaForCausalLM.from_pretrained(folder)
                    continue
                rows = self._run_stage(stage, progress)
                self._finish(folder, rows)
        self.model.save_pretrained(self.out)

    def _finish(self, folder: Path, rows: list[dict]) -> None:
        with self.log_path.open("a") as log:
            log.writelines(json.dumps(row) + "\n" for row in rows)
        unfinished = folder.with_name("unfinished")
        self.model.save_pretrained(unfinished)
        unfinished.rename(folder)

    def _run_stage(self, stage: Stage, progress: Progress) -> list[dict]:
        """Train one stage from its own seed with fresh optimizers; returns its log rows."""
        rng = random.Random(f"{self.seed} {stage.name}")
        optimizers = build_optimizers(self.model)
        task = progress.add_task(stage.name, total=stage.steps)
        running: dict[str, float] = {}
        rows, start = [], time.monotonic()
        for step in range(1, stage.steps + 1):
            decay = 1.0 if stage.goal else min(1.0, (1 - (step - 1) / stage.steps) / DECAYING_SHARE)
            scale = stage.rate * decay * min(1.0, step / WARMUP_STEPS)
            loss, accuracy = self._train_step(stage.lessons(rng), optimizers, scale)
            for kind, value in accuracy.items():
                running[kind] = 0.9 * running.get(kind, value) + 0.1 * value
            progress.update(task, advance=1, description=f"{stage.name}: loss {loss:.3f}")
            if step % self.log_every == 0:
                rows.append({"stage": stage.name, "step": step, "seconds": round(time.monotonic() - start, 1)})
                rows[-1] |= {"loss": round(loss, 4)} | {kind: round(value, 4) for kind, value in running.items()}
                print(json.dumps(rows[-1]), flush=True)
            if stage.goal and step >= WARMUP_STEPS and running[stage.goal[0]] >= stage.goal[1]:
                break
        return rows

    def _train_step(
        self, groups: list[Group], optimizers: list[torch.optim.Optimizer], scale: float
    ) -> tuple[float, dict[str, float]]:
        """One update from all groups' gradients; returns the weighted loss, and each kind's accuracy."""
        total = 0.0
        accuracy: dict[str, float] = {}
        for group in groups:
            batch = self.packer.pack(group.lessons)
            loss, found = step_loss(self.model, batch, self.tokenizer.eos_token_id)
            (group.weight * loss).backward()
            total += group.weight * loss.item()
            accuracy = found | accuracy
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, (MUON_LR, ADAMW_LR), strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad()
        return total, accuracy


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for model, tokenizer and training_log.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="length of the last three stages, relative to the default"
    )
    arguments = parser.parse_args()
    Trainer(arguments.out, arguments.seed).run(curriculum(arguments.scale))


if __name__ == "__main__":
    main()
