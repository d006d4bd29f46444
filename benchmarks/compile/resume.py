"""Kill -9 at random moments: does a resumed compilation give the uninterrupted memory, bit by bit?

    python -m benchmarks.compile.resume --kills 20 --processes 1 2 --out benchmarks/results/compile/kill.json

A job is killed, started again and killed again until it comes through; then its memory is compared with that of a job
that nobody interrupted. Of several processes one, drawn at random, is killed, and the rest shortly after, as launchers
do. Exit code 1 if any memory differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist

import lcc
from benchmarks.common.environment import describe
from benchmarks.common.results_file import write_rows
from lcc.embedded_model import load_embedded
from lcc.memory.store import checkpoint_beside
from lcc.pipeline.compile_to import compile_to, memory_output
from lcc.pipeline.options import CompileOptions, Run
from lcc.synthetic.people import document
from lcc.utils.progress import Reporter

fork = multiprocessing.get_context("fork")


class Job:
    """One compilation into a file, by one process or by several of one gloo group."""

    def __init__(self, loaded, text: str, output: Path, processes: int, steps: int):
        self.loaded, self.text, self.output, self.processes = loaded, text, output, processes
        self.starts = 0
        self.settings = {"ratio": 4, "steps": steps, "batch": 8, "general_queries": 12, "self_study_questions": 8}
        self.settings |= {"evaluate_every": 2, "max_response_tokens": 8, "held_out": 0.2}

    def start(self) -> list:
        self.starts += 1
        meeting = self.output.with_name(f"{self.output.name}.meeting{self.starts}")
        children = [fork.Process(target=self._work, args=(rank, meeting)) for rank in range(self.processes)]
        for child in children:
            child.start()
        return children

    def _work(self, rank: int, meeting: Path) -> None:
        # A killed peer makes gloo raise here: expected, and not worth a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        if self.processes > 1:
            dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=self.processes)
        output = memory_output(self.output, self.text)
        run = Run.of(checkpoint_every=1, distributed=self.processes > 1)
        compile_to(*self.loaded, self.text, output, CompileOptions.of(**self.settings), run, Reporter(False))

    def run(self) -> float:
        """To the end; returns the seconds it took."""
        began = time.monotonic()
        for child in self.start():
            child.join()
            if child.exitcode:
                raise SystemExit(f"an undisturbed job of {self.processes} processes ended with {child.exitcode}")
        return time.monotonic() - began

    def run_and_kill(self, after: float, victim: int) -> bool:
        """Kill one process after so many seconds; whether there was one to kill."""
        children = self.start()
        children[victim].join(after)
        alive = children[victim].is_alive()
        if alive:
            os.kill(children[victim].pid, signal.SIGKILL)
            for child in children:
                child.join(0.3)
                child.kill()
        for child in children:
            child.join()
        return alive

    def reached(self) -> str:
        """What is on disk."""
        folder = checkpoint_beside(self.output)
        if self.output.exists():
            return "memory written"
        if (folder / "state.safetensors").exists():
            return "optimising"
        return "surrogate written" if (folder / "surrogate.safetensors").exists() else "nothing written"


def same(left: lcc.Memory, right: lcc.Memory) -> bool:
    """Bit by bit, but for the seconds that a step took."""
    curves = [
        [{k: v for k, v in point.items() if k != "seconds"} for point in memory.curve] for memory in (left, right)
    ]
    tensors = torch.equal(left.kv.keys, right.kv.keys) and torch.equal(left.kv.values, right.kv.values)
    return tensors and curves[0] == curves[1] and left.questions == right.questions


def torment(job: Job, whole: lcc.Memory, duration: float, kills: int, rng: random.Random) -> dict:
    """Kill ``kills`` times, and count what came through."""
    phases: Counter[str] = Counter()
    finished = identical = 0
    while sum(phases.values()) < kills or checkpoint_beside(job.output).exists():
        if sum(phases.values()) < kills:
            if job.run_and_kill(rng.uniform(0, duration), rng.randrange(job.processes)):
                phases[job.reached()] += 1
        else:
            job.run()
        if job.output.exists() and not checkpoint_beside(job.output).exists():
            finished += 1
            identical += same(lcc.Memory.load(job.output), whole)
            job.output.unlink()
    return {"kills": kills, "killed_when": dict(phases), "finished": finished, "identical": identical}


def measure(loaded, text: str, processes: int, kills: int, steps: int, seed: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        reference = Job(loaded, text, Path(folder, "whole"), processes, steps)
        duration = reference.run()
        whole = lcc.Memory.load(reference.output)
        job = Job(loaded, text, Path(folder, "killed"), processes, steps)
        outcome = torment(job, whole, duration, kills, random.Random(f"{seed} {processes}"))
    return {"processes": processes, "steps": steps, "seed": seed, "seconds_undisturbed": round(duration, 2), **outcome}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    # Children are forked: no thread may have been started by then.
    torch.set_num_threads(1)
    loaded = load_embedded()
    text = document(random.Random(arguments.seed), people=2, attributes=4).text
    rows = [
        measure(loaded, text, processes, arguments.kills, arguments.steps, arguments.seed) | describe()
        for processes in arguments.processes
    ]
    print(json.dumps({"rows": rows}, indent=1))
    if arguments.out:
        write_rows(arguments.out, rows)
    if any(row["identical"] != row["finished"] or not row["finished"] for row in rows):
        raise SystemExit("a resumed memory differs from the uninterrupted one")


if __name__ == "__main__":
    main()
