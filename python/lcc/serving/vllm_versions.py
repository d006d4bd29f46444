"""What of vLLM the connector stands on: the versions that it was tested with, and the calls as they are there."""

from __future__ import annotations

import inspect
from typing import Any

from ..errors import InputError

# vLLM calls its connectors experimental: each minor version may change them.
OLDEST, BEFORE = (0, 32), (0, 33)
# Methods of KVConnectorBase_V1, and of attention backends, with their parameters.
CONNECTOR = {
    "on_new_request": ["self", "request"],
    "get_num_new_matched_tokens": ["self", "request", "num_computed_tokens"],
    "update_state_after_alloc": ["self", "request", "blocks", "num_external_tokens"],
    "build_connector_meta": ["self", "scheduler_output"],
    "start_load_kv": ["self", "forward_context", "kwargs"],
    "wait_for_layer_load": ["self", "layer_name"],
    "save_kv_layer": ["self", "layer_name", "kv_layer", "attn_metadata", "kwargs"],
    "wait_for_save": ["self"],
    "get_block_ids_with_load_errors": ["self"],
}
UPDATE = ["layer", "key", "value", "kv_cache", "slot_mapping"]


def check_version(version: str) -> None:
    """Refuse a vLLM that the connector was not tested with.

    Raises:
        InputError: naming the versions that it was.
    """
    parts = version.split("+", maxsplit=1)[0].split(".")
    number = tuple(int(part) for part in parts[:2] if part.isdigit())
    if not OLDEST <= number < BEFORE:
        oldest, before = (".".join(map(str, each)) for each in (OLDEST, BEFORE))
        raise InputError(f"the connector was tested with vLLM {oldest} to below {before}, and this is {version}: "
                         "install such a version, or a newer lcc-kernels")  # fmt: skip


def check_signatures(base: type[Any], expected: dict[str, list[str]] = CONNECTOR) -> None:
    """Refuse methods that are called otherwise than the connector expects.

    Raises:
        InputError: naming the first of them.
    """
    for name, wanted in expected.items():
        method = getattr(base, name, None)
        have = None if method is None else list(inspect.signature(method).parameters)
        if have != wanted:
            raise InputError(
                f"vLLM's {base.__name__}.{name} takes {have}, and the connector knows it with {wanted}: install a "
                "vLLM that lcc-kernels was tested with"
            )


def check_update(backend: Any) -> None:
    """Refuse an attention backend that does not write K and V as the connector has them.

    Raises:
        InputError: naming the backend.
    """
    update = getattr(backend, "do_kv_cache_update", None)
    have = None if update is None else list(inspect.signature(update).parameters)
    if have != UPDATE:
        raise InputError(
            f"the attention backend {type(backend).__name__} does not write keys and values by themselves: take "
            "another one, such as FLASH_ATTN"
        )
