"""Compilations that differ in what the memory is taught with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.common.data import synthetic_data
from lcc.compilers.lora import LoraMemory
from lcc.data.samples import Sample
from lcc.embedded_model.lessons import CONTINUE_REQUEST
from lcc.modeling.kv import KV
from lcc.modeling.lora import lora_model
from lcc.modeling.prefill import prefill
from lcc.modeling.scoring import completion_states
from lcc.pipeline.settings import CompileSettings, make_settings
from lcc.synthetic.people import ASKED_WORDINGS, Document, Fact
from lcc.text.context import Context, build_context
from lcc.text.prompts import REPEAT_REQUEST
from lcc.text.queries import load_queries
from lcc.training.trainer import Trainer

from .probes import SNIPPET_WORDS, wordings

RATIO = 8


@dataclass(frozen=True)
class Streams:
    """The paper's two streams, and perhaps a third; by default with a learning rate and a length that fit.

    Attributes:
        asked: share of the facts that a third stream asks about, in wordings that leave some for the exam.
        continuations: a third stream continues the text after any few of its words, as the teacher does.
        sentences: a third stream repeats the text from the start of any of its sentences to the sentence's end.
        blind: hide the memory, while compiling, in the layers in which questions do not read the text.
    """

    general_weight: float = 1.0
    learning_rate: float = 4e-3
    steps: int = 250
    batch: int = 16
    asked: float = 0.0
    continuations: bool = False
    sentences: bool = False
    blind: bool = False

    def settings(self, seed: int) -> CompileSettings:
        return make_settings(
            "paper",
            ratio=RATIO,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            buffer_learning_rate=self.learning_rate,
            general_weight=self.general_weight,
            self_study_weight=1.0,
            general_queries=256,
            engine="reference" if self.blind else "packed",
            seed=seed,
        )

    def facts(self, doc: Document, seed: int) -> frozenset[Fact]:
        """The facts that are asked about: of a larger share, those of a smaller one among them."""
        drawn = random.Random(seed).sample(doc.facts, len(doc.facts))
        return frozenset(drawn[: round(self.asked * len(drawn))])


STREAMS = {
    "two streams": Streams(),
    "repetition alone": Streams(general_weight=0.0),
    "and continuations": Streams(continuations=True),
    "and sentences": Streams(sentences=True),
    "in the layers that answer": Streams(blind=True),
    "and questions, 1/4 of the facts": Streams(asked=1 / 4),
    "and questions, 1/2 of the facts": Streams(asked=1 / 2),
    "and questions, all facts": Streams(asked=1.0),
    "two streams, the paper's rate and steps": Streams(learning_rate=2e-5, steps=2812, batch=32),
}


@dataclass(frozen=True)
class Compiled:
    """[P | B] as queries see it, rotated; the facts that were asked about; the last step's loss."""

    visible: KV
    asked: frozenset[Fact]
    loss: float


class BlindMemory(LoraMemory):
    """LCC's memory, some layers of which show nothing but an average."""

    hidden: Sequence[int] = ()

    def encode(self) -> KV:
        """K and V of B, its values all alike in the hidden layers."""
        kv = super().encode()
        alike = [v.mean(1, keepdim=True).expand_as(v) if n in self.hidden else v for n, v in enumerate(kv.values)]
        return replace(kv, values=torch.stack(alike))


def compile_streams(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    doc: Document,
    streams: Streams,
    seed: int,
    unread: Sequence[int],
) -> Compiled:
    """Compile ``doc``; the model is left as it came.

    Args:
        unread: the layers in which questions do not read the text.
    """
    settings, asked = streams.settings(seed), streams.facts(doc, seed)
    context = build_context(model, tokenizer, doc.text, settings.ratio)
    torch.manual_seed(seed)
    lora = settings.compiler
    with lora_model(model, lora.rank, lora.alpha, lora.targets) as layers:
        memory = BlindMemory(model, context, layers, lora, seed)
        memory.hidden = unread if streams.blind else ()
        with torch.no_grad():
            text_kv = prefill(model, context.context_ids, memory.prefix)
            data = synthetic_data(model, context, text_kv, settings, load_queries())
            third = [wording for fact in doc.facts if fact in asked for wording in wordings(fact)[:ASKED_WORDINGS]]
            third += continuations(doc.text) if streams.continuations else []
            taught = _answered(model, context, text_kv, settings, third) if third else []
            if streams.sentences:
                taught += _forced(model, context, text_kv, [fact.sentence for fact in doc.facts])
        train = (*data.train, *(replace(sample, stream="self_study") for sample in taught))
        training = settings.training
        trainer = Trainer(memory, replace(data, train=train), training, settings.execution, seed)
        while trainer.step < training.steps:
            loss = trainer.advance()
        with torch.no_grad():
            return Compiled(memory.visible(memory.encode(), training.keep_prefix), asked, loss)


def continuations(text: str) -> list[str]:
    """Requests to continue the text after each run of a few words."""
    words = text.split()
    runs = (words[start : start + SNIPPET_WORDS] for start in range(len(words) - SNIPPET_WORDS))
    return list(dict.fromkeys(CONTINUE_REQUEST.format(snippet=" ".join(run)) for run in runs))


def _answered(
    model: PreTrainedModel, context: Context, text_kv: KV, settings: CompileSettings, queries: Sequence[str]
) -> list[Sample]:
    """``queries`` with the full-context teacher's answers."""
    settings = settings.replace(general_weight=1.0, general_queries=len(queries))
    return list(synthetic_data(model, context, text_kv, settings, queries).train)


def _forced(model: PreTrainedModel, context: Context, text_kv: KV, responses: Sequence[str]) -> list[Sample]:
    """The request to repeat the text, answered with ``responses``, and what the teacher thinks of each token."""
    query, end = tuple(context.chat.query_ids(REPEAT_REQUEST)), context.chat.end
    samples = [Sample(query, (*context.chat.ids(text), end), query=text) for text in responses]
    hidden = completion_states(model, text_kv, samples).split([len(sample.response_ids) for sample in samples])
    return [replace(sample, teacher_hidden=states) for sample, states in zip(samples, hidden, strict=True)]
