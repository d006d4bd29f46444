"""A LoRA that learns the full-text model's answers to questions about the text (InfiniteICL, arXiv 2504.01707)."""

from __future__ import annotations

from lcc.training.execution import autocast
from lcc.training.train import train
from lcc.utils.progress import Reporter

from .adapter import Adapter, AdapterMethod, Trained
from .workbench import Peer

QUESTIONS_ALONE = {"reconstruction_weight": 0.0, "general_weight": 0.0}


class SyntheticQALora(AdapterMethod):
    """The questions are LCC's self-study stream; the loss is the divergence from the full-text model."""

    def train(self, adapter: Adapter) -> Trained:
        """The same data, loss, loop and early stopping as ``lcc.compile``."""
        settings = self.settings
        with autocast(self.model, settings.execution):
            data = self.distillation_data(adapter.context)
            _, curve = train(adapter, data, settings.training, settings.execution, settings.seed, Reporter(False))
        return Trained(curve[-1]["seconds"], data.self_questions)


PEER = Peer(
    SyntheticQALora,
    "InfiniteICL's distillation into a LoRA, on self-asked questions alone or on LCC's three streams: "
    "our implementation",
    (QUESTIONS_ALONE, {}),
    start=1e-2,
    by_ratio=False,
)
