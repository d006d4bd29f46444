"""The student: the frozen model answering from B alone, each sample's response predicted (LCC section 3.2).

``packed`` runs one row [P | C | B | P' | sample | sample | ...] a step, the K and V of P and P' being known; of C and
B, the last layer runs B alone, whose K and V the samples read. After a chunked encode, or that of a writer other than
LCC's, it runs the samples alone, in one row too. ``reference`` runs [P | C | B], then the samples over a cache. They
are the same function (identities 1, 6 and 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

import lcc_kernels as lk

from ..compilers.lora import Compiler, Writer
from ..data.synthesis import Sample, response_hidden
from ..errors import InputError
from ..modeling.kv import KV
from ..modeling.packed_decoder import PackedRow
from ..pipeline.settings import CompileSettings


def student_hidden(writer: Writer, samples: Sequence[Sample], settings: CompileSettings) -> torch.Tensor:
    """Last hidden states where the samples' responses are predicted, (supervised tokens, H), sample by sample.

    Differentiable in what the writer trains.

    Raises:
        InputError: ``encode_chunk`` is a number, and the writer is not LCC's.
    """
    if settings.engine == "reference":
        return reference_hidden(writer, samples, settings)
    return packed_hidden(writer, samples, settings)


def reference_hidden(writer: Writer, samples: Sequence[Sample], settings: CompileSettings) -> torch.Tensor:
    """``student_hidden`` in two passes: the encode, then batches of padded samples over [P' | B]."""
    visible = writer.visible(writer.encode(), settings.keep_prefix)
    found: dict[int, torch.Tensor] = {}
    with writer.active(settings.coupled):
        for group in _alike(samples):
            batch = [samples[index] for index in group]
            hidden = response_hidden(writer.model, visible, batch)
            found |= zip(group, hidden.split([len(sample.response_ids) for sample in batch]), strict=True)
    return torch.cat([found[index] for index in range(len(samples))])


def packed_hidden(writer: Writer, samples: Sequence[Sample], settings: CompileSettings) -> torch.Tensor:
    """``student_hidden`` in one pass that runs C, B and the samples, or after an encode the samples alone."""
    ids = [token for sample in samples for token in sample.input_ids]
    own = writer.model.get_input_embeddings()(torch.tensor([ids], device=writer.model.device))
    segments = tuple(len(sample.input_ids) for sample in samples)
    before = torch.empty(1, 0, own.shape[2], dtype=own.dtype, device=own.device)
    if isinstance(writer, Compiler) and not settings.chunk:
        before, rows = writer.encode_embeddings(), _rows(writer, segments, settings)
        first = len(writer.prefix)
    else:
        visible = writer.visible(_encoded(writer, settings), settings.keep_prefix)
        rows = [_samples_alone(visible, segments, settings)] * writer.model.config.num_hidden_layers
        first = len(visible)
    behind = first + before.shape[1]
    positions = torch.cat([torch.arange(first, behind), *(behind + torch.arange(length) for length in segments)])
    # The samples are the last layer's last rows. A compiled layer would be compiled again for every choice of rows.
    read = (rows[-1].running - own.shape[1] + supervised_rows(samples)).to(own.device)
    if not settings.torch_compile:
        rows[-1] = replace(rows[-1], read=read)
    hidden = writer.packed(
        torch.cat((before, own), 1),
        positions.to(own.device),
        rows,
        checkpointing=settings.gradient_checkpointing is True,
        compiled=settings.torch_compile,
    )
    return hidden[0, read]


def _encoded(writer: Writer, settings: CompileSettings) -> KV:
    """K and V of B, keys unrotated."""
    if not settings.chunk:
        return writer.encode()
    if not isinstance(writer, Compiler):
        name = type(writer).__name__
        raise InputError(f"encode_chunk is {settings.chunk}, and {name} reads no text in chunks: leave it out")
    return writer.encode_in_chunks(settings.chunk)


def _rows(compiler: Compiler, segments: tuple[int, ...], settings: CompileSettings) -> list[PackedRow]:
    """A packed row for each layer: C, B and samples, in the last layer B and samples."""
    prefix, text, buffer = compiler.prefix, len(compiler.context.context_ids), compiler.context.buffer

    def row(skipped: int) -> PackedRow:
        """The row without the first ``skipped`` tokens of C."""
        encoded = text - skipped + buffer
        layout = lk.BottleneckLayout(len(prefix), text - skipped, buffer, segments, settings.keep_prefix)
        given = [(0, prefix)] + [(encoded, compiler.copied_prefix)] * settings.keep_prefix
        return PackedRow(layout, tuple(given), None if settings.coupled else encoded, skipped)

    return [row(0)] * (compiler.model.config.num_hidden_layers - 1) + [row(text)]


def _samples_alone(visible: KV, segments: tuple[int, ...], settings: CompileSettings) -> PackedRow:
    """The packed row in which only samples run, after K and V that are known."""
    layout = lk.BottleneckLayout(0, 0, len(visible), segments, False)
    return PackedRow(layout, ((0, visible),), None if settings.coupled else 0)


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
