"""Put each mutant into a copy of the tree and run the tests nearest to it: do they notice?

    python -m tests.mutation [--list] [--only NAME ...] [--json FILE] [--trust]

A mutant is *killed* if they fail and *survives* if they pass. Tests that fail without it prove nothing: each command is
first run on the copy as it is, unless ``--trust`` says that they have just passed. ``--only`` takes names or their
beginnings. Results go to the JSON file after every run; what has a result there is not run again. The exit code is 1 if
a mutant survives that is not known to be harmless.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.mutation.mutant import Mutant
from tests.mutation.mutants import MUTANTS
from tests.mutation.trial import copy_of_the_tree, run_tests, try_out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[""], help="these alone, such as linear_kl")
    parser.add_argument("--json", type=Path, default=Path("mutation.json"), help="results so far, mutation.json")
    parser.add_argument("--trust", action="store_true", help="do not run the tests without a mutant first")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if mutant.name.startswith(tuple(arguments.only))]
    if not chosen:
        parser.error(f"no mutant is called {' or '.join(arguments.only)}: see --list")
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:55} {mutant.file}")
        return 0
    rows = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_the_tree(Path(folder))
        clean: set[tuple[str, bool]] = set()
        for mutant in chosen:
            if mutant.name in rows:
                continue
            command = mutant.tests, mutant.interpreted
            if command not in clean and not arguments.trust:
                clean.add(command)
                if (outcome := run_tests(tree, *command)[0]) != "survived":
                    raise SystemExit(f"{mutant.tests} fails without a mutant: {outcome}")
            result, seconds = try_out(tree, mutant)
            rows[mutant.name] = {"result": result, "seconds": round(seconds, 1), "tests": mutant.tests}
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{mutant.name:55} {result}, {seconds:.1f} s", flush=True)
    return report(chosen, rows)


def report(chosen: list[Mutant], rows: dict[str, dict]) -> int:
    """Print how many of each op were killed, and those that were not; return the exit code."""
    print(f"\n{'op':20} {'mutants':>8} {'killed':>8} {'harmless':>9} {'survived':>9} {'seconds':>8}")
    for op in [*dict.fromkeys(mutant.op for mutant in chosen), ""]:
        mine = [mutant for mutant in chosen if op in (mutant.op, "")]
        killed = sum(rows[mutant.name]["result"] == "killed" for mutant in mine)
        harmless = sum(bool(mutant.harmless) and rows[mutant.name]["result"] == "survived" for mutant in mine)
        seconds = sum(rows[mutant.name]["seconds"] for mutant in mine)
        print(
            f"{op or 'all':20} {len(mine):8} {killed:8} {harmless:9} {len(mine) - killed - harmless:9} {seconds:8.0f}"
        )
    failed = [m for m in chosen if rows[m.name]["result"] != ("survived" if m.harmless else "killed")]
    for mutant in failed:
        print(f"{mutant.name}: {rows[mutant.name]['result']} {mutant.tests}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
