"""The file that keeps what ``lcc bank train-router`` learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MemoryFileError
from ..utils.tensor_files import load_tensors, save_tensors
from .gating import Fit, Gate
from .router_training import SIGNALS, Trained
from .routing import FirstTokenRouter

FORMAT = "lcc-router-1"


def save_trained(path: Path, trained: Trained, **made_with: Any) -> None:
    """Write a router and its gates, at once, in place of whatever file is there.

    Args:
        **made_with: what it depends on, JSON-ready.

    Raises:
        MemoryFileError: the file cannot be written.
    """
    save_tensors(path, FORMAT, trained.router.tensors(), trained.to_dict() | {"made_with": made_with})


def load_trained(path: Path) -> tuple[Trained, dict[str, Any]]:
    """What ``save_trained`` wrote, and what it depends on.

    Raises:
        MemoryFileError: there is no such file, or it is damaged.
    """
    tensors, metadata = load_tensors(path, FORMAT)
    try:
        made_with = metadata.pop("made_with")
        gates = {name: Fit.from_dict(stored) for name, stored in metadata.pop("gates").items()}
        missing = [*({*SIGNALS} - gates.keys()), *({"retriever", "candidates", "model"} - made_with.keys())]
        if missing:
            raise KeyError(missing[0])
        conformal = Gate(**metadata.pop("conformal"))
        router = FirstTokenRouter.of(metadata.pop("form"), tensors)
        return Trained(router, gates, conformal, **metadata), made_with
    except (KeyError, TypeError, AttributeError, ValueError, MemoryFileError) as error:
        raise MemoryFileError(f"{path} is no whole router: {error}; run lcc bank train-router again") from error
