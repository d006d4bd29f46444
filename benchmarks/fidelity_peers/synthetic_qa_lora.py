"""A LoRA that learns the full-text model's answers to questions about the text (InfiniteICL, arXiv 2504.01707)."""

from __future__ import annotations

from lcc.pipeline.compile import write
from lcc.text.queries import load_queries
from lcc.utils.progress import Reporter

from .adapter import Adapter, AdapterMethod, Trained
from .workbench import Peer

QUESTIONS_ALONE = {"reconstruction_weight": 0.0, "general_weight": 0.0}


class SyntheticQALora(AdapterMethod):
    """The questions are LCC's self-study stream; the loss is the divergence from the full-text model."""

    def train(self, adapter: Adapter) -> Trained:
        """The same data, loss, loop and early stopping as ``lcc.compile``."""
        shared = self.shared(adapter.context.sha256)
        with Reporter(False) as reporter:
            written = write(adapter, self.settings, load_queries(), reporter, shared=shared)
        return Trained(written.curve[-1]["seconds"], written.surrogate.self_questions)


PEER = Peer(
    SyntheticQALora,
    "InfiniteICL's distillation into a LoRA, on self-asked questions alone or on LCC's three streams: "
    "our implementation",
    (QUESTIONS_ALONE, {}),
    start=1e-2,
    by_ratio=False,
)
