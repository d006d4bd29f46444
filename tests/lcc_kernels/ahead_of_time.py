"""Compile a Triton kernel for a GPU that is not here, and read what it needs from the cubin.

Not under TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def build(
    kernel, types: dict[str, str], constants: dict[str, object], aligned: Iterable[str], arch: int, **options: int
) -> CompiledKernel:
    """Compile for sm_``arch``: ``types`` of the other arguments by name, those ``aligned`` divisible by 16."""
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in constants else types[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(built: CompiledKernel) -> dict[str, int]:
    """Registers of a thread, the bytes that it spills, and a program's shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        Path(cubin.name).write_bytes(built.asm["cubin"])
        command = [str(CUOBJDUMP), "--dump-resource-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))
    return {"registers": registers, "spilled": stack + local, "shared": built.metadata.shared}


def narrow_products(built: CompiledKernel) -> set[str]:
    """Arguments by which the PTX multiplies in 32 bits, and keeps the lower half of the product."""
    names = [name for name, type_ in built.src.signature.items() if type_ != "constexpr"]
    loads = re.findall(r"ld\.param\.b32\s+(%r\d+), \[\w+_param_(\d+)\]", built.asm["ptx"])
    arguments = {register: names[int(number)] for register, number in loads if int(number) < len(names)}
    products = re.findall(r"(?:mul|mad)\.lo\.\w32\s+%r\d+, (%r\d+), (%?r?\d+)", built.asm["ptx"])
    return {arguments[factor] for factors in products for factor in factors if factor in arguments}


def main(usage: str | None, path: Path, configs: Sequence[str], resources_of: Callable[[str], dict]) -> None:
    """The command of an op's table: print it as JSON, a configuration a line, and with ``--write`` make it ``path``."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"make this table {path.name}")
    parser.add_argument("--select", nargs="*", default=configs, metavar="CONFIG", help=f"such as {configs[0]}")
    arguments = parser.parse_args()
    rows = [f'"{config}": {json.dumps(resources_of(config))}' for config in arguments.select]
    table = "{\n " + ",\n ".join([f'"triton": "{triton.__version__}"', *rows]) + "\n}"
    print(table)
    if arguments.write:
        path.write_text(table + "\n")
