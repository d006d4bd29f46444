"""Where the caches of all layers begin, as a kernel takes it: the first and a step, or a table on the device."""

from __future__ import annotations

from collections import OrderedDict

import torch

KEPT = 64  # tables, of the sets of layers that were used last

_kept: OrderedDict[tuple, torch.Tensor] = OrderedDict()
_captured: dict[tuple, torch.Tensor] = {}


def step(addresses: tuple[int, ...], itemsize: int) -> int | None:
    """Elements of ``itemsize`` bytes from each address to the next, None if they are not evenly spaced.

    Args:
        addresses: of one side's layers, no two alike.
        itemsize: bytes of a number in the caches.
    """
    if len(addresses) == 1:
        return 0
    first, distance = addresses[0], addresses[1] - addresses[0]
    if distance % itemsize or addresses != tuple(range(first, first + distance * len(addresses), distance)):
        return None
    return distance // itemsize


def table(addresses: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The addresses on the device, int64, for the stream that is current.

    A table is found again by all that it holds, which are addresses of tensors that the caller has: it never leads to
    memory that was freed. A CUDA graph that captures a launch with it will read it at every replay: it is then kept for
    good. As with every graph, the caches have to live as long.
    """
    key = device, addresses
    found = _kept.pop(key, None)
    if found is None:
        found = _captured[key] if key in _captured else _upload(addresses, device)
    _kept[key] = found
    if len(_kept) > KEPT:
        _kept.popitem(last=False)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            _captured[key] = found
        else:
            found.record_stream(torch.cuda.current_stream(device))
    return found


def is_known(addresses: tuple[int, ...], device: torch.device) -> bool:
    """Whether ``table`` needs no copy to the device."""
    return (device, addresses) in _kept or (device, addresses) in _captured


def _upload(addresses: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Copied on a stream of its own and waited for: any stream may read it, and no other work is waited for."""
    if device.type != "cuda":
        return torch.tensor(addresses, device=device)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        return torch.tensor(addresses, device=device)
