"""Layouts that the tests share, and the mask spelled out from the roles of the tokens."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from lcc_kernels import BottleneckLayout

AWKWARD = {
    "empty": BottleneckLayout(0, 0, 0),
    "encode only": BottleneckLayout(2, 9, 3),
    "no context": BottleneckLayout(3, 0, 2, (4,)),
    "no buffer": BottleneckLayout(2, 5, 0, (3, 1)),
    "strict": BottleneckLayout(4, 7, 3, (5, 6), keep_prefix=False),
    "segments alone": BottleneckLayout(0, 0, 0, (1, 1, 7)),
    "zero-length segments": BottleneckLayout(1, 19, 5, (0, 37, 0, 1, 18)),
    "packed": BottleneckLayout.pack(
        [BottleneckLayout(2, 21, 3, (5, 1)), BottleneckLayout(3, 4, 0, (), False), BottleneckLayout(1, 2, 1, (40,))]
    ),
}


def packed(tile: int) -> BottleneckLayout:
    """Two documents whose regions hold whole tiles of so many rows, parts of them before and behind, and fewer."""
    segments, alone = (2 * tile + 3 * tile // 5 + 1, 1, tile // 2), (2 * tile + tile // 3 + 2,)
    first = BottleneckLayout(3, 7 * tile // 2 + 2, 2 * tile + 5, segments)
    return BottleneckLayout.pack([first, BottleneckLayout(0, tile + 1, tile // 8, alone, False)])


LARGE = {  # tiles of every kind with neighbours of every kind, whatever their size
    "one document": BottleneckLayout(5, 700, 90, (700, *range(30, 40))),
    "packed": packed(128),
    "long": BottleneckLayout(7, 1_500, 300, (1_600, 0, *[3] * 100), keep_prefix=False),
}

lengths = st.integers(0, 4)
documents = st.builds(BottleneckLayout, lengths, lengths, lengths, st.lists(lengths, max_size=3), st.booleans())
small_layouts = st.lists(documents, max_size=2).map(BottleneckLayout.pack).filter(lambda layout: layout.total <= 32)


def role_mask(layout: BottleneckLayout) -> torch.Tensor:
    """The mask from DESIGN's words, token by token: (total, total) bool."""
    roles = [role for number, document in enumerate(layout.documents) for role in _roles(number, document)]
    seen = [
        [_sees(q_role, k_role) and (k <= q or k_role[1] != q_role[1]) for k, k_role in enumerate(roles)]
        for q, q_role in enumerate(roles)
    ]
    return torch.tensor(seen, dtype=torch.bool).view(len(roles), len(roles))


def _roles(number, document):
    """(document, region) of each token; C and B count as regions of their own, segments are numbered."""
    copy = document.prefix if document.keep_prefix else 0
    sizes = {"P": document.prefix, "C": document.context, "B": document.buffer, "copy": copy}
    sizes |= dict(enumerate(document.segments))
    return [(number, region) for region, size in sizes.items() for _ in range(size)]


def _sees(q_role, k_role):
    order = ["P", "C", "B"]
    (q_document, q), (k_document, k) = q_role, k_role
    if q_document != k_document:
        return False
    if q in order:
        return k in order[: order.index(q) + 1]
    return k == q or (q != "copy" and k in ("B", "copy"))
