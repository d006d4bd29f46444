"""A model is as it came: its flags, its tensors, its modules' modes."""

from __future__ import annotations

import torch


def state(model):
    flags = [(name, p.requires_grad) for name, p in model.named_parameters()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return flags, tensors, [module.training for module in model.modules()]


def assert_untouched(model, before):
    flags, tensors, training = state(model)
    assert (flags, training) == (before[0], before[2])
    assert tensors.keys() == before[1].keys()
    assert all(torch.equal(tensors[name], before[1][name]) for name in tensors)
