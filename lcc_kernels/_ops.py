"""Where ``torch.ops`` has the package's ops. A build for Hugging Face's kernel hub has a namespace of its own."""

from __future__ import annotations

import torch

NAMESPACE = "lcc_kernels"
ops = getattr(torch.ops, NAMESPACE)


def add_op_namespace_prefix(op: str) -> str:
    """The name by which torch registers ``op``; called as in the hub's own builds."""
    return f"{NAMESPACE}::{op}"
