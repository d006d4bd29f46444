"""The loss of a step takes no more memory for more supervised tokens."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lcc.data.samples import Sample
from lcc.training.loss import divergence, token_weights
from lcc.training.settings import TrainingSettings

WIDTH, VOCABULARY, TOKENS = 8, 60_000, 1_200


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest new tensor."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.bytes = max(self.bytes, tensor.nbytes)
        return result


def test_logits_of_a_step_never_exist_whole():
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    sample = Sample((1,), (2,) * TOKENS, teacher_hidden=torch.randn(TOKENS, WIDTH))
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    weights = token_weights([sample], TrainingSettings())
    with LargestTensor() as largest:
        divergence(model, hidden, [sample], weights, "kl").backward()
    assert hidden.grad.abs().sum() > 0
    assert 0 < largest.bytes <= 64 * 2**20 < TOKENS * VOCABULARY * 4
