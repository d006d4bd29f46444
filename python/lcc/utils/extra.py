"""What the extra ``lcc`` of the distribution installs; ``lcc_kernels`` needs torch alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

PACKAGES = (
    "transformers",
    "peft",
    "accelerate",
    "filelock",
    "safetensors",
    "tokenizers",
    "numpy",
    "typer",
    "rich",
)


@contextmanager
def naming_the_extra() -> Iterator[None]:
    """Imports inside the block that fail for want of such a package say how to get it.

    Raises:
        ModuleNotFoundError: naming all that are missing, and the command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in PACKAGES:
            raise
        missing = ", ".join(name for name in PACKAGES if find_spec(name) is None)
        raise ModuleNotFoundError(f"lcc needs {missing}: pip install 'lcc-kernels[lcc]'", name=error.name) from error
