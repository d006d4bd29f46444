"""Attention under the context-isolated mask of Latent Context Compilation."""

from .layout import BottleneckLayout
from .op import bottleneck_attention

__all__ = ["BottleneckLayout", "bottleneck_attention"]
