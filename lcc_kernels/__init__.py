"""Kernels for Latent Context Compilation: tensors in, tensors out; no models, tokenizers or files."""

from .attach_kv import attach_kv, pack_int4, slot_mapping, unpack_int4
from .bottleneck import BottleneckLayout, bottleneck_attention
from .dispatch import BackendUnavailableError, available_backends
from .linear_kl import LinearKL, kl_from_logits, linear_kl
from .rotary import apply_rotary, undo_rotary
from .shared_prefix import shared_prefix_attention

__version__ = "0.1.0"
__all__ = [
    "BackendUnavailableError",
    "BottleneckLayout",
    "LinearKL",
    "apply_rotary",
    "attach_kv",
    "available_backends",
    "bottleneck_attention",
    "kl_from_logits",
    "linear_kl",
    "pack_int4",
    "shared_prefix_attention",
    "slot_mapping",
    "undo_rotary",
    "unpack_int4",
]
