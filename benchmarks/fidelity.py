"""What LCC and its peers keep of unseen documents, at the same bytes, in one run.

    python -m benchmarks.fidelity --out benchmarks/results/fidelity-16.json --work DIR --ratios 16 --documents 20
    python -m benchmarks.fidelity --smoke --out smoke.json --work DIR

Every answer is in DIR as soon as its document is done, and a second call goes on from there. Options that
``benchmarks.fidelity_search`` has chosen are read from ``--options``; a method without any takes the first of its grid.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from benchmarks.environment import describe
from benchmarks.fidelity_peers import PEERS, Options, Workbench, runnable
from lcc.errors import DivergedError, InputError
from lcc.evaluation import Example, FullText, Line, NoText, Result, beside, evaluate, summarize
from lcc.evaluation.suites import general_queries, suite
from lcc.models import EMBEDDED
from lcc.settings import CompileSettings, make_settings

# The suites' tasks that the embedded model can do with the full text, see benchmarks/LOG.md.
TASKS = ("fiction easy", "dialogue opening")
TEST_SEED, SEARCH_SEED = 0, 1
CHOSEN = Path(__file__).parent / "results" / "peer-options.json"
SMOKE = {"steps": 12, "general_queries": 16, "self_study_questions": 16, "evaluate_every": 6}


@dataclass(frozen=True)
class Job:
    """One run: the model, its examples, the settings that all methods share, and where answers are kept."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    settings: CompileSettings
    folder: Path

    def bench(self, ratio: float, folder: Path) -> Workbench:
        """What methods are built from; those that have no ratio get one that any text is long enough for."""
        settings = make_settings(**{**vars(self.settings), "ratio": ratio or 1.0})
        return Workbench(self.model, self.tokenizer, settings, folder / "memories")


def draw_examples(documents: int, lengths: Sequence[int], general: int, seed: int) -> list[Example]:
    """Questions about ``documents`` of the fiction suite, and ``general`` queries beside each."""
    about = [example for example in suite("fiction", documents, seed, lengths) if example.task in TASKS]
    contexts = dict.fromkeys(example.context for example in about)
    return about + beside(general_queries(seed, general), contexts)


def bounds(job: Job) -> list[Result]:
    """The answers with the full text and with none."""
    methods = [FullText(job.model, job.tokenizer), NoText(job.model, job.tokenizer)]
    return evaluate(methods, job.examples, job.folder / "bounds", progress=False)


def run(job: Job, name: str, ratio: float, options: Options) -> list[Result] | None:
    """One method's answers; None if it diverges with these options.

    Args:
        ratio: 0 for a method whose state does not depend on it.
    """
    folder = job.folder / f"{name}-{ratio:g}"
    method = PEERS[name].build(name, job.bench(ratio, folder), options)
    try:
        return evaluate([method], job.examples, folder)
    except DivergedError:
        return None


def lines(results: Sequence[Result], method: str) -> tuple[Line, Line]:
    """The method's figures on the questions and on the general queries; ``results`` hold the bounds' too."""
    mine = [line for line in summarize(results) if line.method == method]
    return [line for line in mine if not line.general][-1], next(line for line in mine if line.general)


def row(results: Sequence[Result], method: str, ratio: float) -> dict[str, Any]:
    """A row of the results file; kept = score / full-text score, intervals are 95 %, bytes and seconds a document."""
    about, general = lines(results, method)
    return {
        "method": method,
        "ratio": ratio or None,
        "qa_kept": about.kept,
        "general_kept": general.kept,
        "kv_bytes": about.kv_bytes,
        "seconds": about.seconds,
        "interval": about.kept_interval,
        "general_interval": general.kept_interval,
        "qa_score": about.score,
        "general_score": general.score,
        "other_wordings": about.other_wordings,
        "other_wordings_count": about.other_wordings_count,
        "questions": about.questions,
        "general_questions": general.questions,
        "documents": about.contexts,
    }


def table(job: Job, methods: Iterable[str], ratios: Sequence[float], chosen: dict[str, Options]) -> list[dict]:
    """The rows of the bounds, and of every method at every ratio."""
    both = bounds(job)
    where = describe()
    rows = [row(both, name, ratio) | where for name, ratio in (("full_text", 1.0), ("no_text", 0.0))]
    for name in methods:
        options = chosen.get(name, PEERS[name].grid[0])
        for ratio in ratios if PEERS[name].by_ratio else [0.0]:
            results = run(job, name, ratio, options)
            if results is None:
                print(f"{name} diverged at ratio {ratio:g} with {options}")
                continue
            told = {
                "options": options,
                "searched": name in chosen,
                "source": PEERS[name].source,
                "steps": job.settings.steps,
            }
            rows.append(row(both + results, name, ratio) | told | where)
    return rows


def load_chosen(path: Path) -> dict[str, Options]:
    """The options that the search chose, by method; none if there was no search."""
    if not path.exists():
        return {}
    return {row["method"]: row["options"] for row in json.loads(path.read_text())["rows"] if row["chosen"]}


def pick(names: Sequence[str] | None) -> list[str]:
    """The methods to run: those named, or all that can; says which cannot and why.

    Raises:
        InputError: a named method is unknown or cannot run.
    """
    reasons = runnable()
    for name in names or []:
        if reasons.get(name, "no such method") is not None:
            raise InputError(f"{name}: {reasons.get(name, 'no such method')}; there are {', '.join(PEERS)}")
    for name, reason in reasons.items():
        if reason and not names:
            print(f"not run: {name} ({reason})")
    return list(names or (name for name, reason in reasons.items() if not reason))


def parser(description: str) -> argparse.ArgumentParser:
    """The options that the table and the search share."""
    found = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--methods", nargs="+")
    found.add_argument("--lengths", type=int, nargs="+", default=[300, 700], help="of documents, in words")
    found.add_argument("--general", type=int, default=20, help="general queries beside each document")
    found.add_argument("--steps", type=int, default=600, help="of every trained method")
    found.add_argument("--smoke", action="store_true", help="one short document and a few steps")
    found.add_argument("--work", type=Path, required=True, help="where answers and memories are kept")
    found.add_argument("--out", type=Path, required=True)
    return found


def make_job(arguments: argparse.Namespace, documents: int, seed: int) -> Job:
    """The run that the options describe."""
    disable_progress_bar()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(EMBEDDED), AutoTokenizer.from_pretrained(EMBEDDED)
    if arguments.smoke:
        examples = draw_examples(1, [120], 4, seed)
        return Job(model, tokenizer, examples, make_settings(**SMOKE), arguments.work)
    examples = draw_examples(documents, arguments.lengths, arguments.general, seed)
    return Job(model, tokenizer, examples, make_settings(steps=arguments.steps), arguments.work)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"rows": list(rows)}, indent=1) + "\n")


def main(given: list[str] | None = None) -> None:
    found = parser(__doc__ or "")
    found.add_argument("--ratios", type=float, nargs="+", default=[16.0])
    found.add_argument("--documents", type=int, default=20)
    found.add_argument("--seed", type=int, default=TEST_SEED)
    found.add_argument("--options", type=Path, default=CHOSEN, help="what the search chose")
    arguments = found.parse_args(given)
    if arguments.seed == SEARCH_SEED:
        found.error(f"seed {SEARCH_SEED} draws the documents that options were searched on: take another")
    try:
        methods = pick(arguments.methods)
    except InputError as error:
        found.error(str(error))
    job = make_job(arguments, arguments.documents, arguments.seed)
    write_rows(arguments.out, table(job, methods, arguments.ratios, load_chosen(arguments.options)))


if __name__ == "__main__":
    main()
