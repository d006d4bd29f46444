"""The optimisers: AdamW, and Muon for many small matrices.

This Muon runs the Newton-Schulz iteration in float32, on all matrices of a shape at once. ``torch.optim.Muon`` takes
one matrix after the other in bfloat16, which a CPU without it in hardware emulates. For a LoRA of rank 64 that was more
than a third of a compile step (benchmarks/log).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

# The quintic iteration of Keller Jordan's Muon (kellerjordan.github.io/posts/muon), as in torch.
COEFFICIENTS, ITERATIONS, EPS = (3.4445, -4.7750, 2.0315), 5, 1e-7


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon(params, lr, momentum=momentum, weight_decay=0, adjust_lr_fn="match_rms_adamw")``, in float32.

    Args:
        params: matrices, or groups of them.
        lr: an update has the root mean square that AdamW's has at this learning rate (arXiv 2502.16982, section 2.2).
        momentum: share of the average gradient that a step keeps.
    """

    def __init__(self, params: Iterable, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move each matrix that has a gradient along its orthogonalised Nesterov momentum."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                updates = orthogonalized(
                    torch.stack([self._averaged(parameter, group["momentum"]) for parameter in parameters])
                )
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.sub_(update, alpha=group["lr"] * 0.2 * max(shape) ** 0.5)

    def _averaged(self, parameter: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        """The gradient with Nesterov momentum, float32."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        average = state["momentum_buffer"]
        average.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum).float()


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """``matrices`` (n, rows, columns) with their singular values moved to about 1."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalized(matrices.mT).mT
    first, third, fifth = COEFFICIENTS
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = matrices @ matrices.mT
        matrices = first * matrices + (third * gram + fifth * gram @ gram) @ matrices
    return matrices


def build_optimizer(
    params: list[torch.nn.Parameter], lr: float, momentum: float, kind: str = "adamw"
) -> torch.optim.Optimizer:
    """AdamW, or Muon with updates of the size that AdamW's have; the group keeps its ``initial_lr``."""
    group = [{"params": params, "initial_lr": lr}]
    if kind == "muon":
        return Muon(group, lr, momentum)
    return torch.optim.AdamW(group, lr=lr, betas=(momentum, 0.999), weight_decay=0.0)
