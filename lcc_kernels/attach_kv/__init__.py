"""Write a memory into preallocated caches: dequantise, rotate to the target positions, scatter."""

from .op import attach_kv
from .slots import slot_mapping

__all__ = ["attach_kv", "slot_mapping"]
