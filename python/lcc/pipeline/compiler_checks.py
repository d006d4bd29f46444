"""What a compiler returns, before it becomes a memory."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from ..compilers.base import Compiled, Compiler
from ..errors import InputError
from ..memory.memory import Memory
from ..memory.payload import AdapterPayload, KVPayload
from ..modeling.fingerprint import differing, fingerprint, require_same
from ..text.context import Context


def check_start(start: Memory, context: Context, prefix_ids: tuple[int, ...], digests: dict[str, str]) -> None:
    """Refuse a memory to go on from.

    Args:
        prefix_ids: that stand before the memory that is made.
        digests: the fingerprint of the model and the tokenizer.

    Raises:
        InputError: it is a memory of another text or of another size.
        MismatchError: it is another model's.
    """
    require_same(start.fingerprint, digests)
    if start.source_sha256 != context.sha256:
        raise InputError("start is a memory of another text: compile this one anew, or give its own memory")
    if start.buffer_tokens != context.buffer:
        raise InputError(
            f"start has {start.buffer_tokens} buffer tokens, and at this ratio there are {context.buffer}: "
            f"compile at its ratio, {start.ratio:g}"
        )
    if start.prefix_ids != prefix_ids:
        raise InputError("start was compiled behind another prefix, of another date or keep_prefix: compile anew")


def check_compiled(
    compiled: Compiled, compiler: Compiler, model: PreTrainedModel, context: Context, digests: dict[str, str]
) -> Compiled:
    """``compiled`` without gradients, if it can become a memory.

    Args:
        digests: the fingerprint of the model before the compiler ran. It is taken again behind compilers of other
            packages.

    Raises:
        InputError: naming the compiler, and what is wrong.
    """
    who = f"the compiler {compiler.name!r}"
    payload = getattr(compiled, "payload", None)
    if not isinstance(compiled, Compiled) or not isinstance(payload, (KVPayload, AdapterPayload)):
        what = type(payload if isinstance(compiled, Compiled) else compiled).__name__
        raise InputError(f"{who} returned a {what}; it must return lcc.Compiled(lcc.KVPayload(kv))")
    payload.check()
    room = context.buffer + len(context.trained_past or ())
    if isinstance(payload, KVPayload) and len(payload.kv) > room:
        raise InputError(f"{who} returned {len(payload.kv)} tokens; there is room for {room} at this ratio")
    if isinstance(payload, KVPayload) and payload.codes:
        raise InputError(f"{who} returned {payload.dtype} numbers; return float ones, lcc.quantize makes them smaller")
    if not type(compiler).__module__.startswith("lcc."):
        after = fingerprint(model)
        others = differing(after, {name: digests[name] for name in after})
        if others:
            raise InputError(
                f"{who} changed the model ({', '.join(others)}), and weights are the caller's: load it again"
            )
    return replace(compiled, payload=payload.detached())
