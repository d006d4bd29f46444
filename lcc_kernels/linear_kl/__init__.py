"""Distillation losses between two next-token distributions."""

from . import backends as backends
from .op import kl_from_logits, linear_kl

__all__ = ["kl_from_logits", "linear_kl"]
