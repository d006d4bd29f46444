"""Distillation losses between two next-token distributions."""

from . import backends as backends
from .module import LinearKL
from .op import kl_from_logits, linear_kl

__all__ = ["LinearKL", "kl_from_logits", "linear_kl"]
