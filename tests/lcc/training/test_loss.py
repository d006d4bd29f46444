"""The loss of a step: its memory, and the precision of its logits."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lcc.data.samples import Sample
from lcc.training.loss import divergence, token_weights
from lcc.training.settings import ExecutionSettings, TrainingSettings

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
        divergence(model, hidden, [sample], weights, "kl", ExecutionSettings()).backward()
    assert hidden.grad.abs().sum() > 0
    assert 0 < largest.bytes <= 64 * 2**20 < TOKENS * VOCABULARY * 4


def test_float32_logits_tell_near_states_of_a_half_precision_model_apart():
    torch.manual_seed(0)
    head = torch.nn.Linear(64, 500, bias=False).bfloat16()
    model = SimpleNamespace(get_output_embeddings=lambda: head)
    teacher = torch.randn(40, 64).mul(6).bfloat16()
    hidden = (teacher + 0.02 * torch.randn(40, 64)).bfloat16()
    sample, weights = Sample((1,), (2,) * 40, teacher_hidden=teacher), torch.full((40,), 1 / 32)

    def loss(module, states, **settings):
        model.get_output_embeddings = lambda: module
        return divergence(model, states, [sample], weights, "kl", ExecutionSettings(**settings)).item()

    wanted = loss(copy.deepcopy(head).double(), hidden.double())
    blurred, sharp = (loss(head, hidden, float32_logits=wide) for wide in (False, True))
    assert abs(sharp / wanted - 1) < 0.02 < abs(blurred / wanted - 1)
    assert loss(head, hidden) == blurred  # auto, on a CPU
