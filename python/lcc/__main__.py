"""``python -m lcc``."""

from .cli import main

main()
