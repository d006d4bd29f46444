"""``lcc eval``: what memories keep, on questions about their texts and on queries beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..compilers.registry import DEFAULT
from ..errors import InputError
from ..pipeline.settings import CompileSettings, make_settings
from ..utils.progress import Reporter
from ..utils.terminal import Terminal, shown
from .options import (
    CompilerOption,
    JsonOption,
    LogFileOption,
    ModelOption,
    RatioOption,
    RecipeOption,
    SeedOption,
    SettingsOption,
    StepsOption,
    chosen_settings,
    print_json,
)

if TYPE_CHECKING:
    from ..evaluation import Example, Judge, Line, Method

# More than anybody waits for.
MOST_TEXTS = 100_000
METHODS = ("full_text", "no_text", "memory")


def eval_command(
    context: typer.Context,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="fiction, dialogue, reading (both of them about one text), needle or key_value (generated); squad, "
            "coqa, booksum or xsum, from the hub or NAME=PLACE; a JSONL file or a datasets name with context, "
            "question, answer_prefix, answer, max_new_tokens.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for answers, memories and results.")],
    texts: Annotated[int, typer.Option(min=1, max=MOST_TEXTS, help="Texts drawn from each source.")] = 5,
    words: Annotated[list[int] | None, typer.Option(help="Length of generated texts; repeatable.")] = None,
    longest: Annotated[int | None, typer.Option(help="Leave out texts with more tokens.")] = None,
    general: Annotated[
        str, typer.Option(help="Queries beside each text: general (generated), gpqa, alpaca, or as SOURCE.")
    ] = "general",
    general_count: Annotated[int, typer.Option(min=0, max=MOST_TEXTS, help="How many of them; 0 for none.")] = 30,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(METHODS),
    metric: Annotated[
        str | None,
        typer.Option(help="exact_match, f1, rouge_l, string_match, string_match_any, contains or judge for all."),
    ] = None,
    ratio: RatioOption = 16.0,
    steps: StepsOption = None,
    seed: SeedOption = 0,
    recipe: RecipeOption = "default",
    compiler: CompilerOption = DEFAULT,
    settings: SettingsOption = None,
    judge: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint, up to /v1.")] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")] = "gpt-4o",
    judge_key_file: Annotated[Path | None, typer.Option(help="A file with the endpoint's key.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 32,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure full text, no text and memories on the same questions. Run it again after a kill: it goes on."""
    from ..evaluation import evaluate, load_examples, load_general, summarize
    from ..evaluation.runner import check_results
    from .loading import load_model

    check_results(output)
    chosen = make_settings(
        recipe, compiler, **chosen_settings(context, settings, compiler, ratio=ratio, steps=steps, seed=seed)
    )
    grader = _judge(judge, judge_model, judge_key_file)
    loaded = load_model(model)
    reporter = Reporter(log_file=log_file)
    compared = _methods(methods, loaded, output, chosen, compiler, batch, reporter)

    def fits(text: str) -> bool:
        return bool(text) and (longest is None or len(loaded[1](text).input_ids) <= longest)

    lengths = {"lengths": tuple(words)} if words else {}
    examples: list[Example] = []
    for source in sources:
        examples += load_examples(source, texts, chosen.seed, fits=fits, **lengths)
    if general_count:
        contexts = list(dict.fromkeys(example.context for example in examples))
        examples += load_general(general, general_count, contexts, chosen.seed)
    if metric:
        examples = [replace(example, metric=metric) for example in examples]
    with reporter:
        results = evaluate(compared, examples, output, grader, progress=reporter)
    lines = summarize(results, seed=chosen.seed)
    if as_json:
        print_json({"results": str(output / "results.jsonl"), "lines": [asdict(line) for line in lines]})
    else:
        show_lines(lines)


def _methods(
    names: str,
    loaded: tuple[Any, Any],
    folder: Path,
    settings: CompileSettings,
    compiler: str,
    batch: int,
    reporter: Reporter,
) -> list[Method]:
    from ..evaluation import FullText, NoText
    from ..pipeline.memory_method import compiled_memories

    make: dict[str, Callable[[], Method]] = {
        "full_text": lambda: FullText(*loaded, batch),
        "no_text": lambda: NoText(*loaded, batch),
        "memory": lambda: compiled_memories(
            *loaded, folder / "memories", settings, compiler, progress=reporter, batch=batch
        ),
    }
    chosen = [name.strip() for name in names.split(",")]
    unknown = [name for name in chosen if name not in make]
    if unknown:
        raise InputError(f"unknown method {unknown[0]!r}; there are {', '.join(make)}")
    return [make[name]() for name in chosen]


def _judge(url: str | None, model: str, key_file: Path | None) -> Judge | None:
    from ..evaluation import Judge
    from ..evaluation.endpoint import load_key

    if url is None:
        return None
    return Judge(url, model, load_key(key_file) if key_file else None)


def show_lines(lines: Sequence[Line]) -> None:
    """The summary as a table, and what each method costs."""
    table = Table(title="scores in %, with 95 % intervals", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("task", min_width=10, overflow="fold")
    table.add_column("method", no_wrap=True)
    for heading in ("n", "score", "of full text's", "as\nfull", "as\nnone", "not\nasked"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.caption = (
        "as full, as none: answers equal to those with the full text, without any; "
        "not asked: score on questions that compile did not ask itself"
    )
    previous = None
    for line in lines:
        task = shown(f"{line.task} (general)" if line.general and line.task != "general" else line.task)
        table.add_row(
            task if task != previous else "",
            shown(line.method),
            f"{line.questions}",
            _percent(line.score, line.interval),
            _percent(line.kept, line.kept_interval),
            _whole_percent(line.agreement.get("full_text")),
            _whole_percent(line.agreement.get("no_text")),
            _whole_percent(line.other_wordings if line.other_wordings_count < line.questions else None),
        )
        previous = task
    terminal = Terminal()
    terminal.print(table)
    for method, line in {line.method: line for line in lines}.items():
        terminal.print(
            f"{shown(method)}: {line.kv_bytes / 1024:.0f} KiB of K and V, {line.seconds:.2f} s a text (medians)"
        )


def _percent(share: float | None, interval: tuple[float, float] | None = None) -> str:
    if share is None:
        return "-"
    return f"{100 * share:.1f}" + (f" ({100 * interval[0]:.0f}-{100 * interval[1]:.0f})" if interval else "")


def _whole_percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"
