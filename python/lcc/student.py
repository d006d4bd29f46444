"""The student: the frozen model answering from B alone, each sample's response predicted (LCC section 3.2).

``packed`` runs one row [P | C | B | P' | sample | sample | ...] a step, the K and V of P and P' being known; of C and
B, the last layer runs B alone, whose K and V the samples read. ``reference`` runs [P | C | B], then the samples over a
cache. They are the same function (identities 1, 6 and 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

import lcc_kernels as lk

from .packed import PackedRow
from .settings import CompileSettings
from .surrogate import Sample, response_hidden

if TYPE_CHECKING:
    from .encode import Compiler


def student_hidden(compiler: Compiler, samples: Sequence[Sample], settings: CompileSettings) -> torch.Tensor:
    """Last hidden states where the samples' responses are predicted, (supervised tokens, H), sample by sample.

    Differentiable in LoRA and buffer embeddings.
    """
    run = {"packed": packed_hidden, "reference": reference_hidden}[settings.engine]
    return run(compiler, samples, settings)


def reference_hidden(compiler: Compiler, samples: Sequence[Sample], settings: CompileSettings) -> torch.Tensor:
    """Two passes: the encode, then batches of padded samples over [P' | B]."""
    visible = compiler.visible(compiler.encode(), settings.keep_prefix)
    with compiler.active(settings.coupled):
        return torch.cat([response_hidden(compiler.model, visible, group) for group in _alike(samples)])


def packed_hidden(compiler: Compiler, samples: Sequence[Sample], settings: CompileSettings) -> torch.Tensor:
    """One packed pass; only the rows of C, B and the samples run."""
    context, device = compiler.context, compiler.model.device
    text, buffer, prefix = len(context.context_ids), context.buffer, compiler.prefix
    segments = tuple(len(sample.input_ids) for sample in samples)
    embed = compiler.model.get_input_embeddings()
    own = embed(torch.tensor([[token for sample in samples for token in sample.input_ids]], device=device))
    embeddings = torch.cat((compiler.encode_embeddings(), own), 1)

    def row(skipped: int) -> PackedRow:
        """The row without the first ``skipped`` tokens of C."""
        layout = lk.BottleneckLayout(len(prefix), text - skipped, buffer, segments, settings.keep_prefix)
        encoded = text - skipped + buffer
        given = ((0, prefix), *(((encoded, compiler.copied_prefix),) if settings.keep_prefix else ()))
        return PackedRow(layout, given, None if settings.coupled else encoded, skipped)

    layers = compiler.model.config.num_hidden_layers
    rows = [row(0)] * (layers - 1) + [row(text)]
    encoded = len(prefix) + torch.arange(text + buffer)
    behind = len(prefix) + text + buffer
    positions = torch.cat([encoded, *(behind + torch.arange(length) for length in segments)]).to(device)
    hidden = compiler.packed(embeddings, positions, rows)
    return hidden[0, buffer + supervised_rows(samples).to(device)]


def supervised_rows(samples: Sequence[Sample]) -> torch.Tensor:
    """Where responses are predicted, in the samples' tokens one behind the other: (supervised tokens,) int64."""
    rows, start = [], 0
    for sample in samples:
        stop = start + len(sample.input_ids)
        rows.append(torch.arange(start + len(sample.query_ids) - 1, stop))
        start = stop
    return torch.cat(rows)


def _alike(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    """Runs of samples of like length: the reconstruction sample, far longer than queries, goes alone."""
    groups: list[list[Sample]] = []
    for sample in samples:
        if groups and (groups[-1][0].stream == "reconstruction") == (sample.stream == "reconstruction"):
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups
