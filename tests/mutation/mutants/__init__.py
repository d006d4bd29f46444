"""The mutants, a file an op. A new one needs an old text that its file holds once."""

from __future__ import annotations

from tests.mutation.mutant import Mutant

from . import attach_kv, bottleneck, linear_kl, shared_prefix

MUTANTS: tuple[Mutant, ...] = (*bottleneck.MUTANTS, *linear_kl.MUTANTS, *attach_kv.MUTANTS, *shared_prefix.MUTANTS)
