"""What the connector does inside vLLM's scheduler: which memory a request wants, and under which hash its blocks go.

Nothing here raises: an exception in a scheduler's hook ends the whole engine. A request whose memory cannot be had is
marked, and the workers fail it alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MismatchError
from ..utils.outputs import MEMORY_SUFFIX
from .api_errors import ApiError
from .memory_files import Stamp, inside, load_memory, stamp_of
from .naming import named_memories

log = logging.getLogger(__name__)
# The field of ``kv_transfer_params`` by which the front end names files and digests.
FILES = "lcc"
# Stands in salts; vLLM's HTTP API takes none of it in a client's own salt, so that no client can forge one of these.
AT = "@"


@dataclass(frozen=True)
class File:
    """A memory's file in the folder, and the digest of what it must hold."""

    path: str
    digest: str


@dataclass(frozen=True)
class Wanted:
    """What a request wants.

    Attributes:
        tokens: prefix and buffer tokens; 0 if the memory cannot be had.
        failure: why it cannot; empty if it can.
    """

    files: tuple[File, ...]
    tokens: int
    failure: str = ""


@dataclass(frozen=True)
class Load:
    """Tokens of a memory to be written.

    Attributes:
        blocks: of the request, in order.
        start, end: the first of the tokens, and the one behind the last.
    """

    wanted: Wanted
    blocks: tuple[int, ...]
    start: int
    end: int


class KnownFiles:
    """What is known of the memories' files of a folder; one that changes is read again."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: dict[str, tuple[Stamp | None, tuple[str, int, int]]] = {}

    def get(self, path: str) -> tuple[str, int, int]:
        """Digest, prefix tokens and buffer tokens of a file.

        Raises:
            ApiError, MismatchError: as ``inside`` and ``load_memory``.
        """
        target = inside(self.folder, path)
        stamp = stamp_of(target)
        if path not in self._known or self._known[path][0] != stamp:
            memory, digest = load_memory(target)
            self._known[path] = stamp, (digest, len(memory.prefix_ids), memory.buffer_tokens)
        return self._known[path][1]


def wanted_by(request: Any, files: KnownFiles) -> Wanted | None:
    """What a request of vLLM's wants; None: no memory."""
    params = request.kv_transfer_params
    if not isinstance(params, Mapping) or not params.keys() & {FILES, "memory", "memories"}:
        return None
    try:
        found, tokens = _resolve(params, files)
        if request.lora_request is not None:
            raise MismatchError("a memory was compiled for the base model, and the request wants a LoRA")
        placeholders = request.prompt_token_ids[:tokens]
        if request.num_prompt_tokens <= tokens or len(set(placeholders)) > 1:
            raise MismatchError(f"the prompt must be {tokens} times one placeholder, and a question behind them")
        return Wanted(found, tokens)
    except Exception as error:
        log.warning("lcc: request %s fails: %s", request.request_id, error)
        return Wanted((), 0, str(error))


def salted(request: Any, wanted: Wanted) -> None:
    """Hash a request's blocks by its memory: those of other memories, and of plain text, never meet them."""
    digests = "+".join(file.digest for file in wanted.files)
    # vLLM reads placeholders as text for a request that skips its prefix cache: nobody may find those blocks.
    once = request.request_id if wanted.failure or request.skip_reading_prefix_cache else ""
    request.cache_salt = f"lcc{AT}{digests}{AT}{once}{AT}{request.cache_salt or ''}"
    request.block_hashes.clear()
    request.update_block_hashes()


def end_of_memory(request: Any, wanted: Wanted) -> int:
    """How many of a request's first tokens come from its memory; of one that fails, all that may."""
    most = request.num_tokens - 1
    return most if wanted.failure else min(wanted.tokens, most)


def external_tokens(request: Any, wanted: Wanted, computed: int) -> int:
    """How many tokens come from the memory, behind those that are ``computed``."""
    return max(0, end_of_memory(request, wanted) - computed)


def _resolve(params: Mapping[str, Any], files: KnownFiles) -> tuple[tuple[File, ...], int]:
    given = params.get(FILES)
    named: list[tuple[str, str | None]]
    if given is not None:
        named = [(str(path), str(digest)) for path, digest in given]
    else:
        ids = named_memories({name: params[name] for name in ("memory", "memories") if name in params}, "")
        named = [(name + MEMORY_SUFFIX, None) for name in ids]
    found, tokens, prefix = [], 0, 0
    for path, digest in named:
        known, prefix, buffer_tokens = files.get(path)
        if digest not in (None, known):
            raise ApiError(503, f"{path} was replaced a moment ago: ask again")
        found.append(File(path, known))
        tokens += buffer_tokens
    return tuple(found), prefix + tokens
