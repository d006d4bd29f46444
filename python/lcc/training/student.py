"""The student: the frozen model answers from B alone, and predicts each sample's response (LCC section 3.2).

``packed`` runs one packed row a step: [P | C | B | P' | sample | sample | ...]. K and V of P and P' are precomputed.
The last layer skips the rows of C, because only the K and V of B are needed. After a chunked encode, among
distractors, or where the memory has K and V only, the row holds the samples alone. ``reference`` runs [P | C | B], then
the samples over a cache.
Both are the same function (identities 1, 6 and 7: docs/glossary.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

import lcc_kernels as lk

from ..data.samples import Sample
from ..errors import InputError
from ..modeling.kv import KV
from ..modeling.packed_decoder import PackedRow, Rows
from ..modeling.prefill import prefill
from ..modeling.scoring import Completion, completion_states
from .distractors import ISOLATED, Distractors
from .settings import ExecutionSettings
from .trainable import EncodeRows, TrainableMemory


def student_hidden(
    memory: TrainableMemory,
    samples: Sequence[Sample],
    keep_prefix: bool,
    execution: ExecutionSettings,
    distractors: Distractors = ISOLATED,
) -> torch.Tensor:
    """Last hidden states where the samples' responses are predicted, (supervised tokens, H), sample by sample.

    Differentiable in the memory's parameters.

    Args:
        keep_prefix: see ``TrainingSettings``.
        distractors: what the samples see beside the memory.

    Raises:
        InputError: ``encode_chunk`` is a number, and the memory cannot encode in chunks.
    """
    if execution.engine == "reference":
        return reference_hidden(memory, samples, keep_prefix, distractors)
    return packed_hidden(memory, samples, keep_prefix, execution, distractors)


def reference_hidden(
    memory: TrainableMemory, samples: Sequence[Sample], keep_prefix: bool, distractors: Distractors = ISOLATED
) -> torch.Tensor:
    """``student_hidden`` in two passes: the encode, then batches of padded samples over [P' | B]."""
    visible = memory.visible(memory.encode(), keep_prefix, distractors)
    if memory.adapts_responses:
        return torch.cat([_response_states(memory, visible, sample) for sample in samples])
    states: dict[int, torch.Tensor] = {}
    with memory.applied(memory.adapts_queries):
        for group in _alike(samples):
            batch = [samples[index] for index in group]
            hidden = completion_states(memory.model, visible, batch)
            states |= zip(group, hidden.split([len(sample.response_ids) for sample in batch]), strict=True)
    return torch.cat([states[index] for index in range(len(samples))])


def _response_states(memory: TrainableMemory, visible: KV, sample: Sample) -> torch.Tensor:
    """States of one sample whose query the model reads as it is, all but its last token (CDLM, 2605.28889, eq. 3)."""
    *query, last = sample.query_ids
    read = prefill(memory.model, query, visible) if query else visible
    with memory.applied():
        return completion_states(memory.model, read, [Completion((last,), sample.response_ids)])


def packed_hidden(
    memory: TrainableMemory,
    samples: Sequence[Sample],
    keep_prefix: bool,
    execution: ExecutionSettings,
    distractors: Distractors = ISOLATED,
) -> torch.Tensor:
    """``student_hidden`` in one pass that runs C, B and the samples, or after an encode the samples alone."""
    model = memory.model
    ids = [token for sample in samples for token in sample.input_ids]
    own = model.get_input_embeddings()(torch.tensor([ids], device=model.device))
    segments = tuple(len(sample.input_ids) for sample in samples)
    encode = None if execution.chunk or distractors else memory.encode_rows()
    if encode is not None:
        before, rows, first = encode.embeddings, _rows(memory, encode, segments, keep_prefix), len(memory.prefix)
    else:
        visible = memory.visible(encoded(memory, execution), keep_prefix, distractors)
        before = torch.empty(1, 0, own.shape[2], dtype=own.dtype, device=own.device)
        rows = [_samples_alone(memory, visible, samples)] * model.config.num_hidden_layers
        first = len(visible)
    behind = first + before.shape[1]
    positions = torch.cat([torch.arange(first, behind), *(behind + torch.arange(length) for length in segments)])
    # The samples are the last layer's last rows. A compiled layer would be compiled again for every choice of rows.
    read = (rows[-1].running - own.shape[1] + supervised_rows(samples)).to(own.device)
    if not execution.torch_compile:
        rows[-1] = replace(rows[-1], read=read)
    hidden = memory.packed(
        torch.cat((before, own), 1),
        positions.to(own.device),
        rows,
        checkpointing=execution.gradient_checkpointing is True,
        compiled=execution.torch_compile,
    )
    return hidden[0, read]


def encoded(memory: TrainableMemory, execution: ExecutionSettings) -> KV:
    """K and V of B, keys unrotated. With ``gradient_checkpointing`` the text is one chunk: it is read once more."""
    whole = len(memory.context.context_ids) if execution.gradient_checkpointing is True else 0
    tokens = execution.chunk or whole
    encoded = memory.encode_chunked(tokens) if tokens else None
    if encoded is not None:
        return encoded
    if execution.chunk:
        raise InputError(
            f"encode_chunk is {execution.chunk}, and {type(memory).__name__} reads no text in chunks: leave it out"
        )
    return memory.encode()


def _rows(memory: TrainableMemory, encode: EncodeRows, segments: tuple[int, ...], keep_prefix: bool) -> list[PackedRow]:
    """A packed row for each layer: C, B and samples, and in the last layer B and samples."""
    prefix, text, buffer = memory.prefix, encode.text_tokens, memory.context.buffer

    def row(skipped: int) -> PackedRow:
        """The row without the first ``skipped`` tokens of C."""
        encoded = text - skipped + buffer
        layout = lk.BottleneckLayout(len(prefix), text - skipped, buffer, segments, keep_prefix)
        given = [(0, prefix)] + [(encoded, encode.copied_prefix)] * keep_prefix
        return PackedRow(layout, tuple(given), None if memory.adapts_queries else encoded, skipped)

    return [row(0)] * (memory.model.config.num_hidden_layers - 1) + [row(text)]


def _samples_alone(memory: TrainableMemory, visible: KV, samples: Sequence[Sample]) -> PackedRow:
    """The packed row in which only samples run, after precomputed K and V."""
    layout = lk.BottleneckLayout(0, 0, len(visible), tuple(len(sample.input_ids) for sample in samples), False)
    adapted: Rows = None if memory.adapts_queries else 0
    if memory.adapts_responses:
        adapted = supervised_rows(samples).to(memory.model.device)
    return PackedRow(layout, ((0, visible),), adapted)


def supervised_rows(samples: Sequence[Sample]) -> torch.Tensor:
    """Where responses are predicted, in the samples' tokens one behind the other: (supervised tokens,) int64."""
    rows, start = [], 0
    for sample in samples:
        stop = start + len(sample.input_ids)
        rows.append(torch.arange(start + len(sample.query_ids) - 1, stop))
        start = stop
    return torch.cat(rows)


def _alike(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of samples of like length, shortest first: as a batch, padded by a quarter at most."""
    lengths = [len(sample.input_ids) for sample in samples]
    groups: list[list[int]] = []
    for index in sorted(range(len(samples)), key=lengths.__getitem__):
        if groups and 4 * lengths[index] <= 5 * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
