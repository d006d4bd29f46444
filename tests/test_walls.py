"""The walls between the rooms."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def sources(folder: str) -> list[Path]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    return paths


def test_kernels_know_no_model():
    for path in sources("lcc_kernels"):
        assert not imports(path) & {"lcc", "transformers", "peft", "safetensors", "tokenizers"}, path


def test_triton_is_imported_in_kernel_files_alone():
    for path in [*sources("lcc_kernels"), *sources("python/lcc")]:
        if path.name != "triton_kernel.py":
            assert "triton" not in imports(path), path


def test_the_environment_is_read_in_one_place():
    readers = {path.name for path in [*sources("lcc_kernels"), *sources("python/lcc")] if "environ" in path.read_text()}
    assert readers == {"dispatch.py"}


def test_no_pickle():
    for path in [*sources("lcc_kernels"), *sources("python/lcc"), *sources("tests")]:
        assert not imports(path) & {"pickle", "dill", "cloudpickle"}, path
        assert "torch.load" not in path.read_text("utf-8") or path == Path(__file__), path


# What loads a model, a tokenizer or a data set, and can run code that comes with it.
LOADERS = {"from_pretrained", "from_config", "load_dataset"}


def test_nothing_that_is_loaded_runs_its_own_code():
    calls = 0
    for path in [*sources("python/lcc"), *sources("benchmarks")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) in LOADERS:
                calls += 1
                given = {word.arg: word.value for word in node.keywords}.get("trust_remote_code")
                assert isinstance(given, ast.Constant), f"{path}:{node.lineno} leaves trust_remote_code out"
                assert given.value is False
    assert calls > 8
