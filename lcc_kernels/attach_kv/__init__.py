"""Write a memory into preallocated caches: dequantise, rotate to the target positions, scatter."""

from .int4 import pack_int4, unpack_int4
from .op import attach_kv
from .slots import slot_mapping

__all__ = ["attach_kv", "pack_int4", "slot_mapping", "unpack_int4"]
