"""The walls between the rooms."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lcc

ROOT = Path(__file__).parents[1]
LCC = ROOT / "python" / "lcc"

# The rooms of python/lcc from the top down, each with the rooms that it may import. Every room may import those of
# BELOW that stand below itself. What a room needs from above comes in as an argument: bank and serving, for one, never
# import pipeline.
BELOW = ("text", "modeling", "utils", "errors")
ROOMS = {
    "cli": (
        "pipeline", "serving", "compilers", "evaluation", "bank", "training", "inference", "data", "memory",
        "embedded_model", "synthetic",
    ),
    "pipeline": ("compilers", "evaluation", "inference", "memory", "training", "data"),
    "serving": ("bank", "inference", "memory"),
    "compilers": ("training", "data", "memory", "embedded_model"),
    "evaluation": ("inference", "data", "memory", "synthetic"),
    "bank": ("inference", "memory"),
    "training": ("data",),
    "inference": ("memory",),
    "data": (),
    "memory": (),
    "embedded_model": ("synthetic",),
    "text": (),
    "modeling": (),
    "utils": (),
    "errors": (),
    "synthetic": (),
}  # fmt: skip
# Rooms that know nothing of the package, not even its errors.
ALONE = ("synthetic",)
# Imports that run up all the same, each with its reason; one at most.
EXCEPTIONS: dict[tuple[str, str], str] = {}


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


def modules() -> dict[str, Path]:
    """The files of python/lcc by their module names, such as ``lcc.memory.store``; a package by its own."""
    named = {}
    for path in sources("python/lcc"):
        parts = path.relative_to(LCC.parent).with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imported_modules(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The files of python/lcc that a file imports, wherever in it: lazily, and for its annotations too."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    targets = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names if alias.name.split(".")[0] == "lcc"}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            if source.split(".")[0] == "lcc":
                parts = {f"{source}.{alias.name}" for alias in node.names}
                targets |= {part if part in known else source for part in parts}
    return targets


def room(module: str) -> str:
    """The room of a module; of the package itself, which is the door above all rooms, nothing."""
    return module.split(".")[1] if "." in module else ""


def test_every_file_has_a_room():
    doors = {"lcc", "lcc.__main__"}
    unknown = {room(name) for name in modules() if name not in doors} - ROOMS.keys()
    assert not unknown, f"put {unknown} into the table ROOMS"


def test_imports_run_down():
    order, known = list(ROOMS), modules()
    for name, path in known.items():
        if room(name) not in ROOMS:
            continue
        below = BELOW[BELOW.index(room(name)) + 1 :] if room(name) in BELOW else BELOW
        allowed = {room(name), *ROOMS[room(name)], *(() if room(name) in ALONE else below)}
        up = {target for target in imported_modules(name, path, known) if room(target) not in allowed}
        up -= {target for importer, target in EXCEPTIONS if importer == name}
        assert not up, f"{name} imports {up}"
    for name, others in ROOMS.items():
        assert all(order.index(other) > order.index(name) for other in others)
    assert len(EXCEPTIONS) <= 1


def test_no_file_imports_itself_over_others():
    known = modules()
    graph = {name: imported_modules(name, path, known) for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_module_has_the_name_of_a_public_function():
    rooms = {path.stem if path.is_file() else path.name for path in LCC.iterdir()}
    assert not rooms & {*lcc.__all__}
    for init in LCC.rglob("*/__init__.py"):
        names = {alias.asname or alias.name for node in ast.walk(ast.parse(init.read_text("utf-8")))
                 if isinstance(node, ast.ImportFrom) for alias in node.names}  # fmt: skip
        beside = {path.stem for path in init.parent.glob("*.py")} | {
            p.name for p in init.parent.iterdir() if p.is_dir()
        }
        assert not names & beside, init


# Kernels' and the command line's option lists may be longer.
LONGEST_FILE, LONGEST_FUNCTION = 300, 60


def test_files_and_functions_are_short():
    for path in [*sources("tests"), *sources("docs")]:
        assert len(path.read_text("utf-8").splitlines()) <= LONGEST_FILE, path
    for path in [*sources("python/lcc"), *sources("lcc_kernels"), *sources("benchmarks")]:
        content = path.read_text("utf-8")
        if path.name == "triton_kernel.py":
            continue
        assert len(content.splitlines()) <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and "cli" not in path.parts:
                assert code_lines(node, content) <= LONGEST_FUNCTION, f"{path}: {node.name}"


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, content: str) -> int:
    """Lines of a function without its docstring."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    length = (function.end_lineno or 0) - function.lineno + 1
    return length - ((docstring.end_lineno or 0) - docstring.lineno + 1 if docstring else 0)


def test_kernels_know_no_model_and_no_name_of_their_package():
    for path in sources("lcc_kernels"):
        assert not imports(path) & {"lcc", "lcc_kernels", "transformers", "peft", "safetensors", "tokenizers"}, path


def test_benchmarks_import_no_tests():
    for path in sources("benchmarks"):
        assert "tests" not in imports(path), path


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
