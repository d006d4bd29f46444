"""The embedded model: a small Llama for trying everything on a CPU, and the script that trains it."""

from pathlib import Path

EMBEDDED = Path(__file__).parent / "embedded"

__all__ = ["EMBEDDED"]
