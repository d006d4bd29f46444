"""Measure and show two streams on the embedded model and on small models that are trained here.

    python -m benchmarks.two_streams --out benchmarks/results/fidelity/two-streams.json --work DIR [--smoke]

The file is written after each row. A killed call goes on where it stopped, within the training of a model too.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from benchmarks.common.environment import describe
from benchmarks.common.sweep import Sweep
from lcc.embedded_model import load_embedded
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.inference.reader import prefill_chat
from lcc.synthetic.exam import general_exam
from lcc.synthetic.people import Fact, document
from lcc.synthetic.seeds import DEMO
from lcc.text.chat_format import ChatFormat
from lcc.text.queries import load_queries

from . import heads
from .models import MIXES, Spec, trained, value
from .probes import Probe
from .report import plot, table
from .streams import STREAMS, Streams, compile_streams

PEOPLE, ATTRIBUTES, GENERAL_QUERIES = 4, 3, 30
FULL_TEXT, NO_TEXT = "full text", "no text"
TWO, SENTENCES, ALL = "two streams", "and sentences", "and questions, all facts"
PAPER = "two streams, the paper's rate and steps"
EMBEDDED_NAME = "embedded"
# In the order in which they are measured: the mixes, the sizes, and two sizes from another seed.
SPECS = (
    *(Spec(mix) for mix in MIXES),
    *(Spec("values", width, layers) for width, layers in ((128, 2), (128, 4), (64, 4), (192, 4), (128, 6))),
    *(Spec("values", 128, layers, seed=1) for layers in (2, 4)),
)
SMOKE_SPECS, SMOKE_SCALE, SMOKE_STEPS = (Spec("own words", width=32, layers=2),), 0.01, 2


@dataclass(frozen=True)
class Subject:
    """A model, and how it states a fact."""

    name: str
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    answer: Callable[[Fact], str]
    details: dict[str, Any]

    @classmethod
    def embedded(cls) -> Subject:
        model, tokenizer = load_embedded()
        return cls(EMBEDDED_NAME, model, tokenizer, value, {"mix": "embedded"})

    @classmethod
    def of(cls, spec: Spec, work: Path, scale: float) -> Subject:
        tokenizer = build_tokenizer()
        model = trained(spec, tokenizer, work, scale)
        return cls(spec.name, model, tokenizer, MIXES[spec.mix].answer, {"mix": spec.mix})

    def measure(self, run: str, streams: Streams | None, number: int) -> dict[str, Any]:
        """A row: what the reader ``run`` of a document can do; ``streams`` are those of a memory."""
        doc = document(random.Random(DEMO + number), PEOPLE, ATTRIBUTES)
        chat = ChatFormat.of(self.tokenizer)
        text, prefix = prefill_chat(self.model, chat, doc.text), prefill_chat(self.model, chat, "")
        began, compiled = time.monotonic(), None
        if streams:
            unread = heads.unread(heads.measure(self.model, chat, text, doc, self.answer)["answering"])
            compiled = compile_streams(self.model, self.tokenizer, doc, streams, number, unread)
        seconds = time.monotonic() - began
        visible = compiled.visible if compiled else text if run == FULL_TEXT else prefix
        asked = compiled.asked if compiled else frozenset()
        general = general_exam(random.Random(DEMO + number), GENERAL_QUERIES, load_queries())
        row = {"model": self.name, "run": run, "document": number, **self.details, **self._size()}
        row |= {"text tokens": len(text) - len(prefix), "seen tokens": len(visible) - len(prefix)}
        row |= {"scores": Probe(self.model, chat, doc, visible).measure(general, asked)}
        if run != NO_TEXT:
            row |= {"heads": heads.measure(self.model, chat, visible, doc, self.answer)}
        if compiled:
            row |= {"loss": compiled.loss, "steps": streams.steps, "seconds": round(seconds, 1)}
        return row | describe()

    def _size(self) -> dict[str, int]:
        config, parameters = self.model.config, sum(p.numel() for p in self.model.parameters())
        return {"width": config.hidden_size, "layers": config.num_hidden_layers, "parameters": parameters}


def planned(model: str, documents: Sequence[int]) -> list[tuple[str, int]]:
    """Runs of a model with their documents; what is dear or beside the point is measured on the first one alone."""
    memories = list(STREAMS) if model == EMBEDDED_NAME else [TWO, SENTENCES, ALL]
    once = {PAPER, NO_TEXT} if model == EMBEDDED_NAME else {ALL, NO_TEXT}
    runs = [FULL_TEXT, NO_TEXT, *memories]
    return [(run, number) for run in runs for number in (documents[:1] if run in once else documents)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="where trained models are kept")
    parser.add_argument("--plot", type=Path, help="a PNG")
    parser.add_argument("--models", nargs="+", choices=[EMBEDDED_NAME, *(spec.name for spec in SPECS)])
    parser.add_argument("--documents", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="one document, two models, a few steps of everything")
    given = parser.parse_args(arguments)
    specs, documents, scale = SPECS, given.documents, 1.0
    if given.smoke:
        specs, documents, scale = SMOKE_SPECS, documents[:1], SMOKE_SCALE
    sweep = Sweep(given.out, itemgetter("model", "run", "document"))
    for spec in (None, *specs):
        name = spec.name if spec else EMBEDDED_NAME
        missing = sweep.missing((name, *plan) for plan in planned(name, documents))
        if not missing or (given.models and name not in given.models):
            continue
        subject = Subject.of(spec, given.work, scale) if spec else Subject.embedded()
        for _, run, number in missing:
            streams = STREAMS.get(run)
            if streams and given.smoke:
                streams = replace(streams, steps=SMOKE_STEPS)
            sweep.add(subject.measure(run, streams, number))
    if given.plot:
        plot(sweep.rows, given.plot)
    print(table(sweep.rows), end="")


if __name__ == "__main__":
    main()
