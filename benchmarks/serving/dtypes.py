"""How many answers a server's dtype changes: those of ``lcc.ask`` in float32 beside the server's.

    python -m benchmarks.serving.dtypes --work DIR --vllm-python PYTHON --out benchmarks/results/serving/dtypes.json

The memories are those of ``benchmarks.serving.load``, each asked what it asked itself while it was compiled. A second
call measures what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.models import load
from benchmarks.common.report_parts import head, line
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.serving.memories import invented, make_memories
from benchmarks.serving.servers import Server, llama_cpp_server, transformers_server, vllm_server
from lcc.embedded_model import EMBEDDED
from lcc.serving.certifying import ServedMemory, certify_served
from lcc.serving.memory_files import served_digest
from lcc.utils.outputs import MEMORY_SUFFIX

Start = Callable[[], AbstractContextManager[Server]]


def servers(memories: Path, work: Path, vllm_python: str | None) -> dict[tuple[str, str], Start]:
    """What is measured: engines, and what they compute in."""
    here = {
        ("transformers", "float32"): partial(transformers_server, memories, None, 2, work / "transformers.log"),
        ("llama-cpp", "float32"): partial(llama_cpp_server, memories, None, 2, work / "llama.log"),
        ("llama-cpp", "float16 cache, flash attention"): partial(
            llama_cpp_server, memories, None, 2, work / "llama.log", kv="f16", flash_attn=True
        ),
    }  # fmt: skip
    if vllm_python is None:
        return here
    vllm = partial(vllm_server, vllm_python, memories, str(EMBEDDED), 2, work / "vllm.log")
    dtypes = {
        "float32": (),
        "bfloat16": ("--dtype", "bfloat16"),
        "bfloat16, fp8 cache": ("--dtype", "bfloat16", "--kv-cache-dtype", "fp8"),
    }
    return here | {("vllm", dtype): partial(vllm, options=options) for dtype, options in dtypes.items()}


def measure(server: Server, memories: Path, count: int) -> Row:
    """Answers of all memories: how many there were, and how many are those of ``lcc.ask``."""
    model, tokenizer = load()
    rows = []
    for path in sorted(memories.glob(f"*{MEMORY_SUFFIX}")):
        memory = lcc.Memory.load(path)
        served = ServedMemory(f"{server.url}/v1", path.name.removesuffix(MEMORY_SUFFIX), served_digest(memory))
        rows.append(certify_served(memory, model, tokenizer, served.ask, "", "", count=count).served[-1])
    return {"memories": len(rows), **{name: sum(row[name] for row in rows) for name in ("answers", "same")}}


def table(rows: Sequence[Row]) -> str:
    """A table of rows."""
    lines = head(("engine", "computes in", "answers", "those of lcc ask"))
    lines += [
        line((row["engine"], row["dtype"], str(row["answers"]), f"{row['same'] / row['answers']:.1%}")) for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", type=int, default=20)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--ratio", type=float, default=16)
    parser.add_argument("--questions", type=int, default=32, help="of a memory")
    parser.add_argument("--vllm-python", help="python of the environment that has vLLM; without it vLLM is left out")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--work", type=Path, required=True, help="where memories and logs go")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    memories = options.work / "memories"
    compiled = {"ratio": options.ratio, "compiler": "lcc", "recipe": "fast"}
    make_memories(memories, *load(), invented(options.memories, options.words), 64, **compiled)
    sweep: Sweep[tuple[str, str]] = Sweep(options.out, lambda row: (row["engine"], row["dtype"]))
    known = servers(memories, options.work, options.vllm_python)
    for engine, dtype in sweep.missing(known):
        print(f"{engine}, {dtype}", flush=True)
        with known[engine, dtype]() as server:
            row = measure(server, memories, options.questions)
        sweep.add(describe() | {"engine": engine, "dtype": dtype} | row)
    print(json.dumps({"rows": sweep.rows}) if options.json else table(sweep.rows))


if __name__ == "__main__":
    main()
