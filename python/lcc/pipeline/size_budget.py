"""A memory whose file has so many bytes at most.

The distillation data comes first, because a file holds its questions. Then it is known how many bytes are left for
K and V, and with them the ratio and the dtype.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..compilers.base import TrainedCompiler
from ..errors import InputError
from ..evaluation.quantization_cost import quantize
from ..memory.memory import Memory
from ..memory.quantization import quantize_payload
from ..modeling.kv import kv_shape
from ..modeling.sharding import is_sharded
from ..modeling.weights import loaded_model
from ..text.chat_format import ChatFormat
from ..utils.progress import Reporter
from .compile_once import Compilation, compile_once
from .options import CompileOptions, Run
from .ratio_search import runs_by_ratio
from .size_plan import FEWEST, SizePlan

# Bytes that a file's metadata takes at least, whatever the text.
LEAST_METADATA = 3_000
# Bytes that are expected of what is known when a memory is made: a row of the curve, the certificate, the cost of
# quantising.
CURVE_ROW, CERTIFICATE, QUANTIZATION = 110, 2_000, 250
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

    If the metadata takes more than expected, the text is compiled once more, at a ratio that leaves room for it. If it
    takes less, a wider dtype may fit.

    Raises:
        InputError: the bytes are too few, or the model's weights are sharded; or as ``lcc.compile``.
    """
    limit, settings = options.max_bytes, options.settings
    assert limit is not None
    model = loaded_model(model)
    if is_sharded(model):
        raise InputError("max_bytes is for weights that are whole: leave it out, or load the model on one device")
    tokens = len(ChatFormat.of(tokenizer, parse_special_tokens=settings.data.parse_special_tokens).ids(text))

    def plan(beside: int) -> SizePlan:
        try:
            return SizePlan.of(limit - beside, tokens, kv_shape(model.config), model.dtype)
        except InputError as error:
            about = "at least" if beside == LEAST_METADATA else "about"
            raise InputError(f"max_bytes is {limit:,}, of which metadata takes {about} {beside:,}: {error}") from None

    plan(LEAST_METADATA)
    with runs_by_ratio(run) as at_ratio:
        # The ratio of the fewest buffer tokens: the data does not depend on it.
        ratio = max(1.0, tokens / FEWEST)
        first = replace(options, settings=settings.replace(ratio=ratio))
        data_run = replace(at_ratio(ratio), checkpoint=None)
        beside = _expected_metadata(Compilation.of(model, tokenizer, text, first, data_run, reporter))
        while True:
            chosen = plan(beside)
            at = replace(options, settings=settings.replace(ratio=chosen.ratio))
            whole = compile_once(model, tokenizer, text, at, at_ratio(chosen.ratio), reporter)
            whole = replace(whole, max_bytes=limit)
            memory = _smaller(model, tokenizer, whole, chosen.dtype, options, run)
            if memory.file_bytes <= limit:
                break
            beside = _metadata(memory) + SPARE
        widest = plan(_metadata(memory))
        if widest.ratio == chosen.ratio and widest.dtype != chosen.dtype:
            wider = _smaller(model, tokenizer, whole, widest.dtype, options, run)
            memory = wider if wider.file_bytes <= limit else memory
        return memory


def _metadata(memory: Memory) -> int:
    """Bytes of the memory's file beside its tensors."""
    return memory.file_bytes - memory.nbytes


def _expected_metadata(compilation: Compilation) -> int:
    """Bytes of the file beside K and V, as far as they are known. The data is made, if there is any."""
    options, training = compilation.options, compilation.settings.training
    expected = QUANTIZATION + CERTIFICATE * options.certify
    if isinstance(options.compiler, TrainedCompiler):
        compilation.task.data()
        expected += CURVE_ROW * (1 + training.steps // training.evaluate_every)
    return _metadata(compilation.blank()) + expected


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
    smaller = run.ranks.from_main(lambda: quantize(memory, dtype, model, tokenizer, queries))
    # One operation made it: there is no file of the float memory.
    return replace(smaller, made=memory.made, lineage=memory.lineage)
