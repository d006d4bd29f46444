"""The ``lcc`` command."""

from . import eval
from .app import main

__all__ = ["eval", "main"]
