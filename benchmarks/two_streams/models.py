"""Models of one world that differ in one thing: how they answer, what they repeat, how large they are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from lcc.embedded_model import EMBEDDED, train
from lcc.embedded_model.curriculum import Group, Stage, curriculum
from lcc.embedded_model.packing import Exercise, Lesson, Packer
from lcc.synthetic.general import general_query
from lcc.synthetic.people import ATTRIBUTES, UNKNOWN, Document, Fact, document, unanswerable
from lcc.text.prompts import REPEAT_REQUEST

RECALL_REQUEST = "Please repeat the text about the {attribute} of {name}."
QUESTIONS, GENERAL, RECALLED = 12, 3, 4
REPEAT_WEIGHT = 0.3
# The curriculum's stages up to plain questions about documents: copying, then one, two and four attributes.
LOOKING_UP = 4


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
    """How a model answers, and whether it also repeats the one sentence that it is asked for."""

    answer: Callable[[Fact], str] = value
    recalls: bool = False


MIXES = {
    "values": Mix(),
    "values, recalling": Mix(recalls=True),
    "own words": Mix(own_words),
    "quotations": Mix(quotation),
}


@dataclass(frozen=True)
class Spec:
    """A model to train: the embedded one taught on, or with a size one of its own from nothing.

    Attributes:
        seed: of the first weights and of the lessons.
    """

    mix: str
    width: int | None = None
    layers: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        taught = f"{self.mix}, {self.width} x {self.layers}" if self.width else f"embedded, then {self.mix}"
        return f"{taught}, seed {self.seed}" if self.seed else taught

    def untaught(self, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
        """The model before any stage; heads are the embedded model's in every size, and with them a token's K and V."""
        if self.width is None:
            return LlamaForCausalLM.from_pretrained(EMBEDDED, trust_remote_code=False)
        config = train.build_model(tokenizer).config
        size = {"hidden_size": self.width, "intermediate_size": 3 * self.width, "num_hidden_layers": self.layers}
        config.update(size)
        torch.manual_seed(self.seed)
        return LlamaForCausalLM(config)

    def stages(self, scale: float = 1.0) -> tuple[Stage, ...]:
        """Documents, answered in the way of the mix; before them, from nothing, the embedded model's first stages."""
        mix = MIXES[self.mix]

        def documents(rng: random.Random) -> list[Group]:
            shape = rng.randint(3, 5), rng.randint(2, 4)
            drawn = [document(rng, *shape, rng.random() < 0.5) for _ in range(10)]
            return [Group(1.0, [lesson(doc, rng, mix, n % 2 == 0) for n, doc in enumerate(drawn)])]

        first = curriculum()[:LOOKING_UP] if self.width else ()
        stages = *first, Stage("documents", 120, None, documents, rate=0.5)
        return tuple(replace(stage, steps=int(stage.steps * scale)) for stage in stages)


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
    """Train ``spec``, or go on after a kill; each stage leaves its model under ``work``."""
    model, packer = spec.untaught(tokenizer), Packer(tokenizer)
    with Progress() as progress:
        for stage in spec.stages(scale):
            folder = work / spec.name / stage.name
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                state = folder.with_name("unfinished.safetensors")
                rows = train.StageRun(model, packer, stage, spec.seed, state).run(progress)
                _finish(model, folder, rows)
                state.unlink(missing_ok=True)
            model = LlamaForCausalLM.from_pretrained(folder, trust_remote_code=False)
    return model.eval()


def _finish(model: LlamaForCausalLM, folder: Path, rows: list[dict]) -> None:
    """Model and training log, under a name that only whole ones get."""
    unfinished = folder.with_name("unfinished")
    model.save_pretrained(unfinished)
    (unfinished / "training_log.json").write_text(json.dumps(rows, indent=1))
    unfinished.rename(folder)
