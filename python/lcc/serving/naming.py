"""How a request names its memories, in each of the ways that clients know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..utils.values import is_text, quoted
from .api_errors import ApiError, bad_request

# Between the base model's name and a memory's, in the name of a model.
OF = ":"
FIELDS = ("memory", "memories", "cartridges", "kv_transfer_params")
# What vLLM's connectors take, of which a client may give the memory alone.
TRANSFER = "kv_transfer_params"


def named_memories(body: Mapping[str, Any], base: str) -> tuple[str, ...]:
    """The memories that a request wants, in its order; none if it wants none.

    They are named by ``memory``, ``memories``, ``cartridges`` (``[{"id"}]``), ``kv_transfer_params.memory`` or
    ``.memories``, or by a ``model`` called ``BASE:MEMORY``.

    Args:
        body: the request's JSON object.
        base: the name of the model.

    Raises:
        ApiError: 400: a field is of the wrong kind, or two of them disagree; 404: the model is another one.
    """
    named = {name: ids for name, ids in _named(body, base) if ids}
    if len(set(named.values())) > 1:
        (one, ids), *others = named.items()
        other = next(name for name, different in others if different != ids)
        raise bad_request(
            f"{one} names {', '.join(ids)} and {other} names {', '.join(named[other])}: name memories once", other
        )
    return next(iter(named.values()), ())


def model_name(base: str, memory: str) -> str:
    """What a memory is called as a model."""
    return f"{base}{OF}{memory}"


def _named(body: Mapping[str, Any], base: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each field that may name memories, with those that it names."""
    yield "model", _of_model(body.get("model"), base)
    yield "memory", _one(body.get("memory"), "memory")
    yield "memories", _several(body.get("memories"), "memories")
    yield "cartridges", _several(_cartridges(body.get("cartridges")), "cartridges")
    transfer = body.get(TRANSFER)
    if transfer is not None:
        if not isinstance(transfer, Mapping) or transfer.keys() - {"memory", "memories"}:
            raise bad_request(f'{TRANSFER} takes {{"memory": ID}} alone', TRANSFER)
        yield f"{TRANSFER}.memory", _one(transfer.get("memory"), f"{TRANSFER}.memory")
        yield f"{TRANSFER}.memories", _several(transfer.get("memories"), f"{TRANSFER}.memories")


def _of_model(model: Any, base: str) -> tuple[str, ...]:
    if model is None or model == base:
        return ()
    if not is_text(model):
        raise bad_request(f"model is {quoted(model)}; it must be a name", "model")
    memory = model.removeprefix(base + OF)
    if memory in ("", model):
        hint = f"the model is {base}, and a memory is {model_name(base, 'ID')}; GET /v1/models lists them"
        raise ApiError(404, f"the model {quoted(model)} does not exist: {hint}", "model")
    return (memory,)


def _one(value: Any, param: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not is_text(value) or not value:
        raise bad_request(f"{param} is {quoted(value)}; it must be the id of a memory", param)
    return (value,)


def _several(value: Any, param: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise bad_request(f"{param} is {quoted(value)}; it must be a list of ids", param)
    return tuple(name for each in value for name in _one(each, param) or _one("", param))


def _cartridges(value: Any) -> list[Any] | None:
    """The ids of cartridges, which are memories by another project's name."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise bad_request('cartridges must be a list such as [{"id": ID}]', "cartridges")
    if any(each.get("source", "local") != "local" for each in value):
        raise bad_request("a cartridge's source must be local: the server's folder has them all", "cartridges")
    return [each.get("id") for each in value]
