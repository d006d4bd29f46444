"""Launch the Triton kernel: its plan, its scratch memory, and what it refuses."""

from __future__ import annotations

import torch

from ..dispatch import interpreting
from ..tiles import Tile, architecture
from .batch import PrefixBatch
from .plan import PART, Work, most_sequences, plan, power_of_two
from .tiles import tiles
from .triton_kernel import attention

WIDEST = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}  # head_dim, by dtype
_counters: dict[tuple[torch.device, int], torch.Tensor] = {}


def forward(b: PrefixBatch) -> list[torch.Tensor]:
    """Return out like q, then lse and entropy if wanted."""
    q, outputs = b.q, b.outputs()
    if q.numel() == 0:
        return outputs
    inputs = [_row_major(x) for x in b[:5]]
    bias = None if b.shared_bias is None else _row_major(b.shared_bias)
    rows = (None if x is None else x.contiguous() for x in b[5:9])
    lse = outputs[1] if b.return_lse else None
    entropy = None if b.sinks is None else outputs[-1]
    work = Work.of(b)
    tile, splits = _plan(b, work)
    grid = -(-work.rows // tile.rows), splits, work.kv_heads
    strides = [stride for x in inputs for stride in x.stride()[:-1]]
    with torch.cuda.device_of(q):
        attention[grid](
            *inputs, outputs[0], lse, entropy, *rows, bias, *_scratch(b, grid, tile),
            b.scale, len(q), q.shape[1] // work.kv_heads, q.shape[2], b.shared_k.shape[1], b.own_k.shape[2],
            b.sinks or 0, *strides, 0 if bias is None else bias.stride(0),
            **constants(q.shape[-1], q.dtype, tile, most_sequences(tile, work)),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return outputs


def _row_major(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def refuses(b: PrefixBatch) -> str | None:
    """Why the kernel cannot take these sequences, or None."""
    q = b.q
    if q.dtype not in WIDEST:
        return f"{q.dtype} has no tensor-core path: use float16, bfloat16 or float32, or backend='torch'"
    if not 16 <= q.shape[-1] <= WIDEST[q.dtype]:
        return f"head_dim {q.shape[-1]} is outside 16 ... {WIDEST[q.dtype]} in {q.dtype}: use backend='torch'"
    if interpreting() and q.dtype == torch.bfloat16:
        return "Triton's interpreter multiplies bfloat16 wrongly: use float16 or float32 in it"
    return None


def constants(head_dim: int, dtype: torch.dtype, tile: Tile, sequences: int) -> dict[str, int | str]:
    """What the kernel is compiled for; a tile has rows of up to ``sequences``."""
    return {
        "HEAD_DIM": head_dim,
        "WIDTH": power_of_two(head_dim),
        "ROWS": tile.rows,
        "KEYS": tile.keys,
        "SEQUENCES": power_of_two(sequences),
        "PART": PART,
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
    }


def _plan(b: PrefixBatch, work: Work) -> tuple[Tile, int]:
    device = b.q.device
    processors = 4 if interpreting() else torch.cuda.get_device_properties(device).multi_processor_count
    return plan(tiles(architecture(device), b.q.shape[-1], b.q.dtype, b.sinks is not None), work, processors)


def _scratch(b: PrefixBatch, grid: tuple[int, int, int], tile: Tile) -> tuple[torch.Tensor | None, ...]:
    """Partial means (kv_heads, tiles, splits, ROWS, WIDTH), their states (2 or 5, ..., ROWS), and tiles' counters.

    All None where no tile is split: the kernel is then compiled without a merge.
    """
    row_tiles, splits, kv_heads = grid
    if splits == 1:
        return (None,) * 3
    width = power_of_two(b.q.shape[-1])
    mean = torch.empty(kv_heads, row_tiles, splits, tile.rows, width, dtype=torch.float32, device=b.q.device)
    states = mean.new_empty(2 if b.sinks is None else 5, *mean.shape[:-1])
    return mean, states, _zero_counters(b.q.device, kv_heads * row_tiles)


def _zero_counters(device: torch.device, count: int) -> torch.Tensor:
    """Zeros (count,) int32, which the kernel leaves as it found them: they are kept, a set for each stream.

    A captured graph gets its own, since what is allocated and filled under capture is filled on replay alone.
    """
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    if key not in _counters or len(_counters[key]) < count:
        _counters[key] = torch.zeros(max(1024, 2 * count), dtype=torch.int32, device=device)
    return _counters[key]
