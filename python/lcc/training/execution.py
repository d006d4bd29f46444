"""How a step runs on this machine: its precision, and what ``auto`` comes to."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from transformers import PreTrainedModel

import lcc_kernels as lk

from ..errors import InputError
from ..utils.settings import AUTO
from .settings import ExecutionSettings
from .step_memory import CHUNK, HEADROOM, step_memory
from .trainable import TrainableMemory

# Hidden size from which on bfloat16 pays on a CPU that has it.
CPU_WIDTH = 512


def autocast(model: PreTrainedModel, execution: ExecutionSettings) -> AbstractContextManager:
    """bfloat16 where asked for, or where it pays: see ``bfloat16_pays``.

    Raises:
        InputError: bfloat16 is asked for, and the model is float16.
    """
    return torch.autocast(model.device.type, torch.bfloat16) if in_bfloat16(model, execution) else nullcontext()


def in_bfloat16(model: PreTrainedModel, execution: ExecutionSettings) -> bool:
    """Whether the frozen model runs in bfloat16.

    Raises:
        InputError: bfloat16 is asked for, and the model is float16.
    """
    precision = execution.precision
    # torch cannot cast float16 weights to bfloat16 wherever autocast wants to.
    half = model.dtype == torch.float16
    if half and precision == "bfloat16":
        raise InputError("precision is bfloat16 but the model is float16: leave precision out, or load it in bfloat16")
    return precision == "bfloat16" or (precision == "auto" and not half and bfloat16_pays(model))


def bfloat16_pays(model: PreTrainedModel) -> bool:
    """Whether the device multiplies bfloat16 faster than float32, and the model is wide enough for that to count.

    A CPU does with AVX-512 BF16 or AMX: 2.1 times as fast at width 576, and not at all at width 128 (benchmarks/log).
    """
    if model.device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    faster = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    wide = model.config.hidden_size >= CPU_WIDTH and model.dtype != torch.float64
    return model.device.type == "cpu" and faster and wide


def resolve_auto(
    memory: TrainableMemory, sample_tokens: int, execution: ExecutionSettings, free: int | None, beside: int = 0
) -> ExecutionSettings:
    """Resolve ``auto``: off if a step fits; else checkpointing; else also chunked encoding.

    The reference engine has neither. A memory that does not read the text has no text to chunk.

    Args:
        sample_tokens: of all samples of a step.
        free: bytes, as ``available_bytes`` says. None: the fastest way is taken.
        beside: tokens of the distractors in a step at most.
    """
    # Sections are read one by one, and all of their buffer tokens are seen.
    longest = max(memory.context.parts, key=lambda part: len(part.context_ids))
    text, beside = len(longest.context_ids) if memory.reads_text else 0, beside + memory.context.buffer - longest.buffer
    layout = lk.BottleneckLayout(len(memory.prefix), text, longest.buffer, (sample_tokens,))
    checkpointing, chunk = execution.gradient_checkpointing, execution.encode_chunk

    def resolved(on: bool, size: int) -> ExecutionSettings:
        return replace(
            execution,
            gradient_checkpointing=on if checkpointing == AUTO else checkpointing,
            encode_chunk=size if chunk == AUTO else chunk,
        )

    if free is None or execution.engine == "reference" or AUTO not in (checkpointing, chunk):
        return resolved(False, 0)
    tries = [resolved(False, 0), resolved(True, 0), *[resolved(True, CHUNK)] * memory.reads_text]
    fitting = (
        tried
        for tried in tries
        if step_memory(memory.model, layout, tried, memory.adapts_samples, beside).total <= HEADROOM * free
    )
    return next(fitting, tries[-1])
