"""A LoRA trained on the text by next-token loss (Temp-LoRA, arXiv 2401.11504), the whole text a step."""

from __future__ import annotations

import time

import torch

from lcc.training.optimizers import build_optimizer

from .adapter import Adapter, AdapterMethod, Trained
from .workbench import Peer


class TempLora(AdapterMethod):
    """AdamW with linear decay and clipping, as in ``lcc.compile``."""

    def train(self, adapter: Adapter) -> Trained:
        """Minimise the cross-entropy of the text after the chat's prefix."""
        began, training = time.monotonic(), self.settings.training
        prefix, text = adapter.context.prefix_ids, adapter.context.context_ids
        ids = torch.tensor([[*prefix, *text]], device=self.model.device)
        labels = torch.tensor([[*[-100] * len(prefix), *text]], device=self.model.device)
        optimizer = build_optimizer(adapter.lora, training.learning_rate, training.momentum)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / training.steps)
        for _ in range(training.steps):
            with adapter.applied():
                loss = self.model(input_ids=ids, labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.lora, 1.0)
            optimizer.step()
            decay.step()
        return Trained(time.monotonic() - began)


PEER = Peer(TempLora, "Temp-LoRA, the text as one chunk: our implementation", start=3e-3, by_ratio=False)
