"""A memory whose file has so many bytes at most."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..evaluation.quantization_cost import quantize
from ..memory.memory import Memory
from ..memory.quantization import quantize_payload
from ..modeling.kv import kv_shape
from ..modeling.sharding import is_sharded
from ..modeling.weights import loaded_model
from ..text.chat_format import ChatFormat
from ..utils.progress import Reporter
from .compile_once import compile_once
from .options import CompileOptions, Run
from .ratio_search import runs_by_ratio
from .settings import CompileSettings
from .size_plan import SizePlan

# What a file is expected to say beside its K and V, in bytes: in all, and of each question that the model asked itself.
# What it does say is measured.
METADATA, A_QUESTION = 5_000, 80
# Figures have more or fewer digits in another compilation.
SPARE = 200


def compile_into(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    options: CompileOptions,
    run: Run,
    reporter: Reporter,
) -> Memory:
    """Compile ``text`` into a memory whose file has ``options.max_bytes`` at most; ``SizePlan`` has the rule.

    If the metadata takes more than expected, the text is compiled once more, at a ratio that leaves room for it.

    Raises:
        InputError: the bytes are too few, or the model's weights are sharded; or as ``lcc.compile``.
    """
    limit, settings = options.max_bytes, options.settings
    assert limit is not None
    model = loaded_model(model)
    if is_sharded(model):
        raise InputError("max_bytes is for weights that are whole: leave it out, or load the model on one device")
    tokens = len(ChatFormat.of(tokenizer, parse_special_tokens=settings.data.parse_special_tokens).ids(text))
    beside = _expected(settings.for_text(tokens))
    with runs_by_ratio(run) as at_ratio:
        while True:
            try:
                plan = SizePlan.of(limit - beside, tokens, kv_shape(model.config), model.dtype)
            except InputError as error:
                raise InputError(f"max_bytes is {limit:,}, of which metadata takes about {beside:,}: {error}") from None
            chosen = replace(options, settings=settings.replace(ratio=plan.ratio), max_bytes=None)
            memory = compile_once(model, tokenizer, text, chosen, at_ratio(plan.ratio), reporter)
            memory = replace(_smaller(model, tokenizer, memory, plan.dtype, options, run), max_bytes=limit)
            if memory.file_bytes <= limit:
                return memory
            beside = memory.file_bytes - memory.nbytes + SPARE


def _expected(settings: CompileSettings) -> int:
    return METADATA + A_QUESTION * settings.effective_data.asked


def _smaller(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    memory: Memory,
    dtype: str | None,
    options: CompileOptions,
    run: Run,
) -> Memory:
    """The memory in ``dtype``, and what that costs if memories are measured."""
    if dtype is None:
        return memory
    if not options.certify:
        payload = quantize_payload(memory.kv_payload, dtype)
        return replace(memory, payload=payload, quantization={"source_dtype": memory.dtype})
    queries = options.queries if isinstance(options.queries, list) else None
    return run.ranks.from_main(lambda: quantize(memory, dtype, model, tokenizer, queries))
