"""Load on a server: many clients over many memories, beside the same clients with the raw text in every prompt.

    python -m benchmarks.serving.load --work DIR --out benchmarks/results/serving/load.json

A server runs in a process of its own, and the clients in this one. Each client sends one request after the other, a
question about a document drawn at random, and reads the answer as a stream. ``wrong`` counts answers other than those
of ``lcc.ask`` (or, with the text, of the model that reads the text by itself), ``lost`` requests without an answer. A
second call measures what is missing. The engine ``vllm`` needs ``--vllm-python``, of an environment that has vLLM and
this package.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import quantiles

from benchmarks.common.environment import describe
from benchmarks.common.models import load as load_model
from benchmarks.common.report_parts import head, line
from benchmarks.common.results_file import Row
from benchmarks.common.sweep import Sweep
from benchmarks.serving.client import Reply, load
from benchmarks.serving.memories import Case, invented, make_memories, stories
from benchmarks.serving.servers import Server, llama_cpp_server, transformers_server, vllm_server
from lcc.embedded_model import EMBEDDED
from lcc.modeling.loading import load_checkpoint

WAYS = ("memory", "text")
ENGINES = ("transformers", "vllm", "llama-cpp")
Key = tuple[str, str, int]


def measure(server: Server, cases: Sequence[Case], way: str, options: argparse.Namespace) -> Row:
    """A row: a short load to warm up, then the one that counts."""
    given = (server.url, server.model, cases, way, options.concurrency)
    asyncio.run(load(*given, seconds=options.warm_up, new_tokens=options.new_tokens))
    before = server.resident_bytes
    began = time.perf_counter()
    replies = asyncio.run(load(*given, seconds=options.seconds, new_tokens=options.new_tokens))
    return summary(replies, time.perf_counter() - began) | {
        "mib_before": before >> 20,
        "mib_after": server.resident_bytes >> 20,
    }


def summary(replies: Sequence[Reply], seconds: float) -> Row:
    """Figures of a load that took so many seconds; times in seconds."""
    answered = [reply for reply in replies if reply.status == 200]
    first, whole = (sorted(getattr(reply, name) for reply in answered) for name in ("first", "whole"))
    return {
        "requests": len(replies),
        "answers_per_second": len(answered) / seconds,
        "first_p50": _quantile(first, 50),
        "first_p99": _quantile(first, 99),
        "whole_p50": _quantile(whole, 50),
        "whole_p99": _quantile(whole, 99),
        "wrong": sum(not reply.right for reply in answered),
        "lost": len(replies) - len(answered),
    }


def _quantile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else sum(values)


def server_of(engine: str, memories: Path, options: argparse.Namespace) -> AbstractContextManager[Server]:
    """The engine's server."""
    log = options.work / f"{engine}.log"
    if engine == "transformers":
        return transformers_server(memories, options.model, options.threads, log)
    if engine == "llama-cpp":
        return llama_cpp_server(memories, options.model, options.threads, log)
    return vllm_server(options.vllm_python, memories, options.model or str(EMBEDDED), options.threads, log)


def table(rows: Sequence[Row]) -> str:
    """A table of rows."""
    lines = head(("engine", "prompt", "answers/s", "first p50", "first p99", "whole p50", "wrong", "lost", "MiB"))
    lines += [
        line((
            row["engine"], row["way"], f"{row['answers_per_second']:.1f}", f"{row['first_p50']:.2f} s",
            f"{row['first_p99']:.2f} s", f"{row['whole_p50']:.2f} s", f"{row['wrong']} of {row['requests']}",
            str(row["lost"]), f"{row['mib_before']} → {row['mib_after']}",
        ))
        for row in rows
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES[:1]))
    parser.add_argument("--memories", type=int, default=20)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--ratio", type=float, default=16)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60, help="0: every client asks once")
    parser.add_argument("--warm-up", type=float, default=10, help="seconds before")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of the server")
    parser.add_argument("--vllm-python", help="python of the environment that has vLLM")
    parser.add_argument("--model", help="a model folder, which is asked about stories; by default the embedded model")
    parser.add_argument("--compiler", default="lcc")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--work", type=Path, required=True, help="where memories and logs go")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if "vllm" in options.engines and not options.vllm_python:
        parser.error("the engine vllm needs --vllm-python")
    memories = options.work / "memories"
    loaded = load_checkpoint(options.model) if options.model else load_model()
    sources = stories(options.memories) if options.model else invented(options.memories, options.words)
    recipe = {"recipe": "fast"} if options.compiler == "lcc" else {}
    compiled = {"ratio": options.ratio, "compiler": options.compiler} | recipe
    cases = make_memories(memories, *loaded, sources, options.new_tokens, **compiled)
    sweep: Sweep[Key] = Sweep(options.out, lambda row: (row["engine"], row["way"], row["concurrency"]))
    asked = {name: getattr(options, name) for name in ("concurrency", "seconds", "memories", "ratio",
                                                        "threads", "new_tokens")}  # fmt: skip
    for engine in options.engines:
        missing = sweep.missing([(engine, way, options.concurrency) for way in WAYS])
        if missing:
            with server_of(engine, memories, options) as server:
                for _, way, _ in missing:
                    print(f"{engine}, {way}: {options.concurrency} clients for {options.seconds:.0f} s", flush=True)
                    row = measure(server, cases, way, options)
                    sweep.add(describe() | asked | {"engine": engine, "way": way} | row)
    print(json.dumps({"rows": sweep.rows}) if options.json else table(sweep.rows))


if __name__ == "__main__":
    main()
