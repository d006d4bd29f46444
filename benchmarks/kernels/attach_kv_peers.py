"""Attaching as a caller would write it, and the copy that bounds it, on buffers that take turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import lcc_kernels as lk
from benchmarks.common.timing import copies, rotation
from benchmarks.kernels.attach_kv_cases import AttachCase


def loop(keys, values, key_cache, value_cache, slots, cos, sin, key_scale=None, value_scale=None, paged=False):
    """What a caller would write: dequantise, rotate and index_copy_ a layer after the other."""
    for layer in range(len(keys)):
        key, value = keys[layer].float(), values[layer].float()
        if key_scale is not None:
            key, value = key * key_scale[layer][:, None], value * value_scale[layer][..., None]
        turned = lk.apply_rotary(key, cos, sin)
        for cache, rows in ((key_cache[layer], turned), (value_cache[layer], value)):
            if paged:
                cache[slots // cache.shape[2], :, slots % cache.shape[2]] = rows.transpose(0, 1).to(cache.dtype)
            else:
                cache.index_copy_(2, slots, rows.to(cache.dtype).expand(len(cache), -1, -1, -1))


def calls(case: AttachCase, backend: str, device: str) -> dict[str, list[Callable[[], object]]]:
    """The op, the loop, and a copy that moves as many bytes: each a list of calls on buffers that take turns."""
    sets = [case.tensors(device) for _ in range(rotation(case.bytes, device))]
    return {
        "attach": [partial(lk.attach_kv, **arguments, backend=backend, validate=False) for arguments in sets],
        "loop": [partial(loop, **arguments) for arguments in sets],
        "copy": copies(case.bytes, device),
    }
