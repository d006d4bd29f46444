"""The methods of the fidelity table: our compilers and their peers, all behind ``lcc.evaluation.Method``."""

from . import compiled, kept_tokens, ragged_matching, synthetic_qa_lora, temp_lora
from .kvpress_methods import MISSING, PRESSES, installed
from .workbench import Options, Peer, Workbench

__all__ = ["MISSING", "PEERS", "Options", "Peer", "Workbench", "runnable"]

PEERS: dict[str, Peer] = {
    **compiled.COMPILERS,
    "ragged_matching": ragged_matching.PEER,
    "temp_lora": temp_lora.PEER,
    "synthetic_qa_lora": synthetic_qa_lora.PEER,
    "first_tokens": kept_tokens.FIRST,
    "last_tokens": kept_tokens.LAST,
    "surprising_tokens": kept_tokens.SURPRISING,
    **PRESSES,
}


def runnable() -> dict[str, str | None]:
    """Every method, with None or the reason why it cannot run here."""
    return {name: MISSING if name in PRESSES and not installed() else None for name in PEERS}
