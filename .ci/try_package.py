"""Try an installed lcc-kernels where there is torch alone: ``python -I try_package.py python | cuda``."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import lcc_kernels as lk
from lcc_kernels import library

FOLDER = Path(lk.__file__).parent


def main(kind: str) -> None:
    """Run each op, and look for what the package must hold."""
    assert "site-packages" in FOLDER.parts, FOLDER
    assert find_spec("transformers") is None
    run_ops()
    said = "nothing"
    try:
        import lcc

        lcc.compile  # noqa: B018  imported when it is looked up
    except ModuleNotFoundError as error:
        said = str(error)
    assert "lcc-kernels[lcc]" in said, f"import lcc says {said}"
    assert (FOLDER / "csrc" / "bindings.cpp").is_file()
    assert library.PATH.is_file() == (kind == "cuda")
    reason = library.load_failure(library.PATH)
    if kind == "cuda":  # a torch without CUDA lacks one function
        assert reason is None or (torch.version.cuda is None and "undefined symbol: aoti_torch" in reason), reason
    print(f"{kind}: {FOLDER} with torch {torch.__version__}; CUDA library: {reason or 'loaded'}")


def run_ops() -> None:
    """Every op by backend ``auto``, against its reference."""
    torch.manual_seed(0)
    layout = lk.BottleneckLayout(2, 9, 4, (3, 5))
    q, k, v = (torch.randn(1, heads, layout.total, 16) for heads in (4, 2, 2))
    close(lambda backend: lk.bottleneck_attention(q, k, v, layout, backend=backend))
    student, teacher, weight = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8), torch.randn(33, 8)
    close(lambda backend: torch.autograd.grad(lk.linear_kl(student, teacher, weight, backend=backend), student)[0])
    keys, values, own = torch.randn(2, 7, 16), torch.randn(2, 7, 16), torch.randn(3, 2, 6, 16)
    queries, lengths = torch.randn(3, 4, 1, 16), torch.tensor([1, 6, 3])
    close(lambda backend: lk.shared_prefix_attention(queries, keys, values, own, own, lengths, backend=backend))

    def attached(backend: str) -> torch.Tensor:
        caches, table = torch.zeros(2, 1, 1, 2, 9, 16), torch.ones(7, 16)
        lk.attach_kv(keys[None], values[None], *caches, torch.arange(7), table, table, backend=backend)
        return caches

    close(attached)


def close(run) -> None:  # type: ignore[no-untyped-def]
    """``run`` gives by itself what it gives by the reference."""
    torch.testing.assert_close(run("auto"), run("reference"), rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main(sys.argv[1])
