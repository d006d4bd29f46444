"""What a compilation within a time has decided so far, on disk: a run that was killed goes on with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ..memory.file_format import parse_memory
from ..memory.memory import Memory
from ..utils.distributed import Ranks
from ..utils.resumable import IDENTITY, PLAN_FILE, ResumableFile, require_same_run, sound

FORMAT = "lcc-plan-1"


@dataclass(frozen=True)
class BudgetPlan:
    """What a compilation within a time does.

    Attributes:
        instant: the memory to go on from; None: no instant compiler takes the model.
        settings: what is decided of the settings of the steps; None: there is no time for any.
    """

    instant: Memory | None
    settings: dict[str, Any] | None


class PlanMetadata(TypedDict):
    """What the file says beside the instant memory's tensors."""

    identity: dict[str, Any]
    date: str | None
    memory: dict[str, Any] | None
    settings: dict[str, Any] | None


class PlanFile:
    """The plan in a checkpoint folder.

    Args:
        folder: None: nothing is kept.
        identity: what the plan depends on.
        restart: see ``ResumableFile``.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], ranks: Ranks, restart: bool):
        self._identity = json.loads(json.dumps(identity))
        self._file = None
        if folder is not None:
            path = folder / f"{PLAN_FILE}.safetensors"
            self._file = ResumableFile(path, FORMAT, PlanMetadata, ranks, restart)

    def save(self, plan: BudgetPlan) -> None:
        """Put ``plan`` in place of the one that is there."""
        if self._file is None:
            return
        instant = plan.instant
        metadata = {
            IDENTITY: self._identity,
            "date": None if instant is None else instant.date,
            "memory": None if instant is None else instant.metadata(),
            "settings": plan.settings,
        }
        self._file.write({} if instant is None else instant.tensors(), metadata)

    def load(self) -> BudgetPlan | None:
        """The plan, if there is one.

        Raises:
            MemoryFileError, MismatchError: the file is damaged, or another run's.
        """
        if self._file is None:
            return None
        path = self._file.path
        stored = self._file.read(lambda metadata: require_same_run(metadata, self._identity, path.parent))
        if stored is None:
            return None
        tensors, metadata = stored
        if metadata["memory"] is None:
            return BudgetPlan(None, metadata["settings"])
        with sound(path):
            payload, fields = parse_memory(path, tensors, metadata["memory"])
            return BudgetPlan(Memory(payload, **fields), metadata["settings"])
