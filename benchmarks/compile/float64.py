"""A model in float64 throughout, so that gradients can be compared to 1e-9."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from lcc.modeling.kv import decoder


class Float64RMSNorm(torch.nn.Module):
    """transformers normalises in float32, whatever its input; this does the same in float64."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.square().mean(-1, keepdim=True)
        return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)


class Float64Rotary(torch.nn.Module):
    """transformers computes rotary tables in float32; this is the same table in float64."""

    def __init__(self, rotary: torch.nn.Module):
        super().__init__()
        self.inv_freq, self.scaling = rotary.inv_freq.double(), rotary.attention_scaling

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.inv_freq
        table = torch.cat((angles, angles), -1)
        return table.cos() * self.scaling, table.sin() * self.scaling


def exact(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` in float64 throughout; transformers' own norms and rotary tables stay in float32."""
    model = model.double()
    decoder(model).rotary_emb = Float64Rotary(decoder(model).rotary_emb)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.__class__ = Float64RMSNorm
    return model
