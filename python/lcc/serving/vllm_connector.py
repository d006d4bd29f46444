"""Memories in a stock vLLM, by their names: give its ``--kv-transfer-config`` this module and ``LCCConnector``.

The scheduler is told that the first tokens of a request are there already, and the workers write them: prefix and
buffer tokens, in the model's dtype, through the attention backend's own function, as layouts differ between backends.
docs/how-to/serve.md shows the flags.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import FullAttentionSpec

from ..errors import InputError
from ..inference.pool import AttachedPool
from ..memory.stored_prefix import Prefixes
from ..modeling.kv import KV
from .memory_files import inside, load_memory
from .vllm_scheduling import KnownFiles, Load, Wanted, end_of_memory, external_tokens, salted, wanted_by
from .vllm_versions import check_signatures, check_update, check_version

log = logging.getLogger(__name__)
check_version(vllm.__version__)
check_signatures(KVConnectorBase_V1)
# Where prefixes are kept, in the folder of the memories unless the extra config's ``cache`` says otherwise.
CACHE = ".served"


@dataclass
class LoadsOfStep(KVConnectorMetadata):
    """What the workers write before a step."""

    loads: list[Load] = field(default_factory=list)


class LCCConnector(KVConnectorBase_V1, SupportsHMA):
    """Memories of a folder as KV that vLLM need not compute.

    ``kv_connector_extra_config`` takes ``folder``, and ``cache`` for another place than ``.served`` in it. A request
    names its memory in ``kv_transfer_params``; its prompt begins with as many placeholders as the memory has tokens.

    Raises:
        InputError: vLLM is set up in a way in which memories could be read wrongly.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any):
        super().__init__(vllm_config, role, kv_cache_config)
        self.folder, cache = folders_of(vllm_config.kv_transfer_config.kv_connector_extra_config)
        _check_config(vllm_config, kv_cache_config)
        self.block_size = kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        # Of the scheduler: requests with a memory, what is known of files, and what the next step loads.
        self._wanted: dict[str, Wanted] = {}
        self._files = KnownFiles(self.folder)
        self._loads: list[Load] = []
        # Of a worker.
        self._failed: set[int] = set()
        if role == KVConnectorRole.WORKER:
            model = vllm_config.model_config
            self._prefixes = Prefixes(model.model, model.dtype, cache)
            self._pool = AttachedPool[KV]()

    # The scheduler.

    def on_new_request(self, request: Any) -> None:
        """Note what a request wants, and hash its blocks by it."""
        wanted = wanted_by(request, self._files)
        if wanted is not None:
            self._wanted[request.request_id] = wanted
            salted(request, wanted)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens the memory brings; they are there when the step begins."""
        wanted = self._wanted.get(request.request_id)
        return (0 if wanted is None else external_tokens(request, wanted, num_computed_tokens)), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Note where the tokens go. Preempted requests come here again."""
        wanted = self._wanted.get(request.request_id)
        if wanted is not None and num_external_tokens:
            end = end_of_memory(request, wanted)
            ids = tuple(blocks.get_block_ids()[0])
            self._loads.append(Load(wanted, ids, end - num_external_tokens, end))

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """What the workers must do."""
        loads, self._loads = self._loads, []
        return LoadsOfStep(loads)

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Let a request go, and tell the client which memory it read."""
        wanted = self._wanted.pop(request.request_id, None)
        return False, None if wanted is None else {"memory_digests": [file.digest for file in wanted.files]}

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """As ``request_finished_all_groups``."""
        return self.request_finished_all_groups(request, (block_ids,))

    # A worker.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Nothing: layers are looked up when they are written."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Write what this step needs. What cannot be had is reported, and fails its own request alone."""
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, LoadsOfStep)
        for load in metadata.loads:
            try:
                self._write(load, forward_context.no_compile_layers)
            except Exception as error:
                log.warning("lcc: a memory is not loaded: %s", error)
                self._failed |= set(load.blocks[load.start // self.block_size : -(-load.end // self.block_size)])

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that were not written since the last call."""
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: loads are done when a step begins."""

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""

    def _write(self, load: Load, layers: dict[str, Any]) -> None:
        """Write tokens of a memory into the layers of this worker.

        Raises:
            Exception: they are not there, wholly or in part.
        """
        if load.wanted.failure:
            raise InputError(load.wanted.failure)
        kv = self._pool.get(load.wanted.files, lambda: self._place(load.wanted))
        heads, positions = _heads_of_rank(kv.keys.shape[1]), torch.arange(load.start, load.end)
        slots = torch.tensor(load.blocks)[positions // self.block_size] * self.block_size + positions % self.block_size
        for name, layer in layers.items():
            cache = getattr(layer, "kv_cache", None)
            if cache is None:
                continue
            check_update(layer.impl)
            number, slots = extract_layer_index(name), slots.to(cache.device)
            # (tokens, kv_heads, head_dim).
            key, value = (
                states[number, heads, load.start : load.end].transpose(0, 1).contiguous().to(cache.device)
                for states in (kv.keys, kv.values)
            )
            layer.impl.do_kv_cache_update(layer, key, value, cache, slots)

    def _place(self, wanted: Wanted) -> KV:
        memories = [load_memory(inside(self.folder, file.path), file.digest)[0] for file in wanted.files]
        return self._prefixes.place(memories)


def folders_of(extra: dict[str, Any]) -> tuple[Path, Path]:
    """The folder of the memories, and that of their prefixes, by ``kv_connector_extra_config``.

    Raises:
        InputError: no folder of memories is named, or there is none.
    """
    if not isinstance(extra.get("folder"), str) or not Path(extra["folder"]).is_dir():
        raise InputError(
            'name the folder of the memories: --kv-transfer-config \'{..., "kv_connector_extra_config": {"folder": '
            f"PATH}}}}'; it is {extra.get('folder')!r}"
        )
    folder = Path(extra["folder"]).resolve()
    return folder, Path(extra.get("cache", folder / CACHE))


def _check_config(config: Any, kv_cache_config: Any) -> None:
    """Refuse what would read memories wrongly, or not at all."""
    policy = config.kv_transfer_config.kv_load_failure_policy
    speculative = config.speculative_config
    groups = kv_cache_config.kv_cache_groups
    if policy != "fail":
        raise InputError(f'kv_load_failure_policy is "{policy}", which reads placeholders as text: it must be "fail"')
    if config.model_config.use_mla:
        raise InputError("the model has multi-head latent attention (MLA): memories hold keys and values by heads")
    if speculative is not None and speculative.method != "ngram":
        raise InputError(f"the draft model ({speculative.method}) has K and V of its own, which no memory holds")
    if len(groups) != 1 or type(groups[0].kv_cache_spec) is not FullAttentionSpec:
        kinds = ", ".join(type(group.kv_cache_spec).__name__ for group in groups)
        raise InputError(f"the model has cache groups other than one of full attention ({kinds}): no memory fits them")


def _heads_of_rank(total: int) -> slice:
    """The heads of this worker, as vLLM's own layers split them."""
    rank, size = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    if total >= size:
        return slice(rank * (total // size), (rank + 1) * (total // size))
    first = rank * total // size
    return slice(first, first + 1)
