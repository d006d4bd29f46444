"""Attention of a batch over one shared prefix and each sequence's own keys and values."""

from .op import shared_prefix_attention

__all__ = ["shared_prefix_attention"]
