"""Small models of one world that differ in one thing: how they answer, what they repeat, how large they are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from lcc.models import train
from lcc.models.curriculum import Group, Stage
from lcc.models.fiction import ATTRIBUTES, UNKNOWN, Document, Fact, document, unanswerable
from lcc.models.general import WORDS, general_query
from lcc.models.packing import Exercise, Lesson, Packer
from lcc.surrogate import REPEAT_REQUEST

RECALL_REQUEST = "Please repeat the text about the {attribute} of {name}."
QUESTIONS, GENERAL, RECALLED = 12, 3, 4
REPEAT_WEIGHT = 0.3
SEED = 0


def value(fact: Fact) -> str:
    """The value alone: no word of the answer stands before it."""
    return fact.value


def own_words(fact: Fact) -> str:
    """A sentence that is worded the same whatever the text says: the text's own words in a third of the facts."""
    return ATTRIBUTES[fact.attribute].statements[0].format(n=fact.name, v=fact.value)


def quotation(fact: Fact) -> str:
    """The sentence of the text."""
    return fact.sentence


@dataclass(frozen=True)
class Mix:
    """How a model answers, and whether it also repeats the one sentence that it is asked for.

    ``learnt`` is the token accuracy of answers in which one value in twenty is wrong.
    """

    answer: Callable[[Fact], str] = value
    learnt: float = 0.95
    recalls: bool = False


MIXES = {
    "values": Mix(),
    "values, recalling": Mix(recalls=True),
    "own words": Mix(own_words, 0.99),
    "quotations": Mix(quotation, 0.99),
}


@dataclass(frozen=True)
class Spec:
    """A model to train."""

    mix: str
    width: int = 128
    layers: int = 4

    @property
    def size(self) -> str:
        return f"{self.width} x {self.layers}"

    @property
    def name(self) -> str:
        return f"{self.mix}, {self.size}"


def build(spec: Spec, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """The embedded model's architecture in another size; heads stay as they are, and with them a token's K and V."""
    config = train.build_model(tokenizer).config
    size = {"hidden_size": spec.width, "intermediate_size": 3 * spec.width, "num_hidden_layers": spec.layers}
    config.update(size)
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def stages(mix: Mix, scale: float = 1.0) -> tuple[Stage, ...]:
    """Copying, then one attribute, which needs the name, then documents; the first is the same for all mixes."""

    def copying(rng: random.Random) -> list[Group]:
        return [Group(1.0, [_copying_lesson(rng) for _ in range(24)])]

    def one_attribute(rng: random.Random) -> list[Group]:
        people = rng.randint(3, 6)
        return [Group(1.0, [lesson(document(rng, people, 1, True), rng, mix, n % 4 == 0) for n in range(20)])]

    def documents(rng: random.Random) -> list[Group]:
        shape = rng.randint(3, 5), rng.randint(2, 4)
        drawn = [document(rng, *shape, rng.random() < 0.5) for _ in range(10)]
        return [Group(1.0, [lesson(doc, rng, mix, n % 2 == 0) for n, doc in enumerate(drawn)])]

    return (
        Stage("copying", int(500 * scale), ("repeat", 0.95), copying),
        Stage("one attribute", int(300 * scale), ("question", mix.learnt), one_attribute),
        Stage("documents", int(320 * scale), None, documents),
    )


def _copying_lesson(rng: random.Random) -> Lesson:
    text = " ".join(rng.choices(WORDS, k=rng.randint(12, 48)))
    return Lesson(text, (Exercise(((REPEAT_REQUEST, text),), "repeat"),))


def lesson(doc: Document, rng: random.Random, mix: Mix, repeat: bool) -> Lesson:
    """Questions about ``doc``, one that it does not answer, general queries, and perhaps the document repeated."""
    asked = rng.choices(doc.facts, k=QUESTIONS)
    exercises = [Exercise(((doc.question(fact, rng).text, mix.answer(fact)),), "question") for fact in asked]
    exercises.append(Exercise(((unanswerable(rng, doc).text, UNKNOWN),), "unknown"))
    drawn = (general_query(rng) for _ in range(GENERAL))
    exercises += [Exercise(((query.text, query.answer),), "general") for query in drawn]
    if repeat:
        exercises.append(Exercise(((REPEAT_REQUEST, doc.text),), "repeat", REPEAT_WEIGHT))
    if mix.recalls:
        for fact in rng.choices(doc.facts, k=RECALLED):
            request = RECALL_REQUEST.format(attribute=fact.attribute, name=fact.name)
            exercises.append(Exercise(((request, fact.sentence),), "repeat", REPEAT_WEIGHT))
    return Lesson(doc.text, tuple(exercises))


def trained(spec: Spec, tokenizer: PreTrainedTokenizerBase, work: Path, scale: float = 1.0) -> LlamaForCausalLM:
    """Train ``spec``, or go on after a kill; models of one size start from the same copying model.

    Each stage leaves its model under ``work``.
    """
    model, packer = build(spec, tokenizer), Packer(tokenizer)
    with Progress() as progress:
        for stage in stages(MIXES[spec.mix], scale):
            owner = spec.size if stage.name == "copying" else spec.name
            folder = work / owner / stage.name
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                state = folder.with_name("unfinished.safetensors")
                rows = train.StageRun(model, packer, stage, SEED, state).run(progress)
                _finish(model, folder, rows)
                state.unlink(missing_ok=True)
            model = LlamaForCausalLM.from_pretrained(folder)
    return model.eval()


def _finish(model: LlamaForCausalLM, folder: Path, rows: list[dict]) -> None:
    """Model and training log, under a name that only whole ones get."""
    unfinished = folder.with_name("unfinished")
    model.save_pretrained(unfinished)
    (unfinished / "training_log.json").write_text(json.dumps(rows, indent=1))
    unfinished.rename(folder)
