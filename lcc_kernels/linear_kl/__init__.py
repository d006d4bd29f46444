"""Distillation losses between two next-token distributions."""

from .op import kl_from_logits, linear_kl

__all__ = ["kl_from_logits", "linear_kl"]
