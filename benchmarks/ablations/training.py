"""A training of ``benchmarks.ablations``: its share of the document's samples, and its LoRA on or off once trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import torch

from benchmarks.ablations.points import Plan
from benchmarks.common.models import load
from benchmarks.fidelity.study import digest
from lcc.compilers.lora import LoraCompiler, LoraMemory
from lcc.data.cache import DataCache
from lcc.data.samples import DistillationData
from lcc.evaluation import Answers, Example, answer_examples
from lcc.evaluation.methods import ReadingMethod
from lcc.inference.reader import Reader
from lcc.modeling.fingerprint import fingerprint
from lcc.pipeline.distillation import distillation_data
from lcc.pipeline.identity import Identity
from lcc.pipeline.settings import CompileSettings
from lcc.text.context import build_context
from lcc.text.prompts import REPEAT_REQUEST
from lcc.training.run import TrainingRun
from lcc.training.trainer import Trainer
from lcc.utils.progress import Reporter
from lcc.utils.random_state import seeded
from lcc.utils.tensor_files import load_tensors, save_tensors

TRAINED = "lcc-ablation-1"


def prepare(plan: Plan, text: str) -> None:
    """Make the document's samples, if they are not in the folder."""
    data_of(plan, text)


@cache
def loaded_model() -> dict[str, str]:
    """The digests of model and tokenizer as they were loaded: while a LoRA is on the model, they would cover it."""
    return fingerprint(*load())


def data_of(plan: Plan, text: str) -> DistillationData:
    """The document's samples, as many as any point takes: from the folder, or made now."""
    model, tokenizer = load()
    settings = plan.settings("three streams", {"general_queries": plan.most_queries})
    context = build_context(model, tokenizer, text, settings.ratio)
    identity = Identity.of(settings, LoraCompiler(), context, loaded_model(), plan.queries)
    data_cache = DataCache(plan.folder / "surrogates", identity.data, shared=True)
    return distillation_data(model, context, settings, plan.queries, data_cache, Reporter(False))


def share(data: DistillationData, settings: CompileSettings) -> DistillationData:
    """The samples that ``settings`` train on: the first general queries, and what the model asked itself, or none."""
    general = [sample for sample in data.train if sample.stream == "general"]
    self_study = [sample for sample in data.train if sample.stream == "self_study"]
    counts = settings.data.general_queries, settings.data.self_study_questions
    return DistillationData(data.reconstruction, (*general[: counts[0]], *self_study[: counts[1]]), ())


class Ablated(ReadingMethod):
    """A buffer trained as a point says, read with the LoRA off, or on as the coupled variant wants it."""

    def __init__(self, plan: Plan, settings: CompileSettings, lora_on: bool):
        super().__init__(*load())
        self.plan, self.settings, self.lora_on = plan, settings, lora_on
        self.name = "lora_on" if lora_on else "lora_off"

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model's and tokenizer's digests, the settings and the queries."""
        return loaded_model() | {"settings": self.settings.flat(), "queries": digest(self.plan.queries)}

    def answer(self, context: str, examples: Sequence[Example]) -> Answers:
        """Answer from the buffer.

        Raises:
            DivergedError: the training diverged.
        """
        questions = share(data_of(self.plan, context), self.settings).self_questions
        with self.reading(context) as (reader, seconds):
            texts = answer_examples(self.model, reader.chat, reader.visible, examples, self.batch)
            return Answers(texts, reader.visible.nbytes, seconds, questions)

    def repeats(self, context: str) -> float:
        """Share of the text's tokens predicted right after the request to repeat it, teacher-forced."""
        with self.reading(context) as (reader, _):
            return reader.accuracy([REPEAT_REQUEST], [tuple(reader.chat.ids(context))])

    @contextmanager
    def reading(self, text: str) -> Iterator[tuple[Reader, float]]:
        """The trained buffer's reader, and the seconds of its training; the model is left as it came."""
        settings = self.settings
        context = build_context(self.model, self.tokenizer, text, settings.ratio)
        with (
            seeded(self.model.device, settings.seed),
            LoraCompiler().trainable(self.model, context, settings.compiler, settings.seed) as memory,
        ):
            seconds = self._train(memory, text)
            with torch.no_grad():
                visible = memory.visible(memory.encode(), settings.training.keep_prefix)
            with memory.applied(self.lora_on):
                yield Reader(self.model, context.chat, visible), seconds

    def _train(self, memory: LoraMemory, text: str) -> float:
        """Bring the memory to its trained state: from the folder, or now. Returns the seconds of its training."""
        path = self.plan.folder / "states" / f"{digest([text, self.identity])}.safetensors"
        parameters = {"buffer": memory.buffer} | {f"lora.{index}": matrix for index, matrix in enumerate(memory.lora)}
        if not path.exists():
            samples = share(data_of(self.plan, text), self.settings)
            settings = self.settings
            trainer = Trainer(memory, samples, settings.training, settings.execution, settings.seed)
            TrainingRun([trainer]).finish(Reporter(False), settings.training.steps)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, TRAINED, parameters, {"seconds": trainer.seconds})
        stored, metadata = load_tensors(path, TRAINED)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(stored[name])
        return metadata["seconds"]
