"""``lcc bank ask``, ``chat``, ``train-router`` and ``eval``: a bank before a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..utils.progress import Reporter
from ..utils.terminal import Terminal, say, shown, shown_lines
from .bank import bank_commands, command, opened
from .chat import next_message
from .options import (
    DEFAULT_BANK,
    BankOption,
    JsonOption,
    LogFileOption,
    ModelOption,
    QueriesOption,
    SeedOption,
    print_json,
)

if TYPE_CHECKING:
    from ..bank.bank import MemoryBank
    from ..bank.opening import OpenBank
    from ..bank.session import BankAnswer

__all__ = ["bank_commands"]

RetrieverOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="bm25; hidden, asking: the model's own vectors; a sentence-transformers folder; bm25+asking fuses two.",
    ),
]
RouterOption = Annotated[
    str, typer.Option(help="score, first_token (trained), neighbors, or auto: the trained one if there is one.")
]
GateOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto, none, entropy, divergence, likeness, score, conformal (trained), or one such as entropy=1.5.",
    ),
]
CandidatesOption = Annotated[int, typer.Option(min=1, help="Memories that are looked at for each question.")]
TogetherOption = Annotated[int, typer.Option(min=1, help="Memories that may answer side by side.")]
FallbackOption = Annotated[str, typer.Option(help="What answers where no memory does: text, if it is kept, or model.")]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]


@command("ask")
def ask_command(
    questions: Annotated[list[str], typer.Argument(help="One or more questions.", metavar="QUESTION...")],
    bank: BankOption = DEFAULT_BANK,
    retriever: RetrieverOption = "bm25",
    router: RouterOption = "auto",
    gate: GateOption = "auto",
    candidates: CandidatesOption = 5,
    together: TogetherOption = 1,
    fallback: FallbackOption = "text",
    max_new_tokens: MaxTokensOption = 64,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a bank: the right memory answers, or a text, or the plain model; it says which, and why."""
    options = {"retriever": retriever, "router": router, "gate": gate, "candidates": candidates, "together": together}
    with opened(bank) as store:
        ready = _before(store, model, **options, fallback=fallback)
        answers = list(ready.ask(questions, max_new_tokens))
        skipped = dict(ready.session.skipped)
    for key, error in skipped.items():
        say(f"[red]damaged:[/red] {shown(key)} is skipped: {shown(error)}")
    if as_json:
        print_json({"answers": [answer.to_dict() for answer in answers], "skipped": skipped})
        return
    for answer in answers:
        heading = f"[bold]{shown(answer.question)}[/bold]\n" if len(answers) > 1 else ""
        Terminal().print(heading + shown_lines(answer.text))
        Terminal().print(f"({_where(answer)})", style="dim", soft_wrap=True)


@command("chat")
def chat_command(
    bank: BankOption = DEFAULT_BANK,
    retriever: RetrieverOption = "bm25",
    router: RouterOption = "auto",
    gate: GateOption = "auto",
    candidates: CandidatesOption = 5,
    max_new_tokens: MaxTokensOption = 64,
    model: ModelOption = None,
) -> None:
    """Talk with a bank. The first message that a memory answers chooses it; /new chooses again; an empty line ends.

    An adapter is chosen for one message.
    """
    from ..inference.conversation import Conversation
    from ..memory.payload import KVPayload

    terminal, conversation = Terminal(), None
    options = {"retriever": retriever, "router": router, "gate": gate, "candidates": candidates}
    with opened(bank) as store:
        ready = _before(store, model, **options)
        while message := next_message(terminal):
            if message.strip() == "/new":
                conversation = None
                continue
            try:
                if conversation is not None:
                    said = conversation.say(message, max_new_tokens)
                else:
                    [answer] = ready.ask([message], max_new_tokens)
                    said = answer.text
                    terminal.print(f"({_where(answer)})", style="dim", soft_wrap=True)
                    memory = store.memory(answer.keys[0]) if answer.source == "memory" else None
                    if memory is not None and isinstance(memory.payload, KVPayload):
                        conversation = Conversation(ready.session.model, ready.session.chat.tokenizer, memory)
                        conversation.say(message, max_new_tokens)
            except InputError as error:
                terminal.print(f"[red]error:[/red] {shown(str(error))}", soft_wrap=True)
                continue
            terminal.print(f"[bold green]bank:[/bold green] {shown_lines(said)}")


@command("train-router")
def train_router_command(
    bank: BankOption = DEFAULT_BANK,
    retriever: RetrieverOption = "bm25",
    candidates: CandidatesOption = 5,
    unrelated: QueriesOption = None,
    questions: Annotated[int, typer.Option(min=1, help="Self-asked questions that are read, at most.")] = 1000,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot the gates' signals and their ROC, as SVG or PNG."),
    ] = None,
    seed: SeedOption = 0,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train the router and fit the gates on the questions that the memories asked themselves."""
    from .bank_plots import check_plot, plot_gates
    from .bank_tables import show_trained
    from .loading import load_model

    if plot is not None:
        check_plot(plot)
    with opened(bank) as store, Reporter(log_file=log_file) as reporter:
        trained = store.train_router(
            *load_model(model), retriever, candidates, unrelated, questions, seed, report=reporter.count
        )
        where = store.folder.router
    if plot is not None:
        plot_gates(trained, plot)
    if as_json:
        print_json(trained.to_dict() | {"path": str(where)})
    else:
        show_trained(trained, where)


@command("eval")
def eval_command(
    questions: Annotated[
        str,
        typer.Argument(
            metavar="QUESTIONS", help="JSONL rows of question, answer and document; none, if no document answers it."
        ),
    ],
    bank: BankOption = DEFAULT_BANK,
    retriever: RetrieverOption = "bm25",
    router: RouterOption = "auto",
    gate: GateOption = "auto",
    candidates: CandidatesOption = 5,
    unrelated: QueriesOption = None,
    count: Annotated[int, typer.Option(min=0, help="Unrelated questions, at most.")] = 200,
    metric: Annotated[str, typer.Option(help="Of an answer: exact_match, f1, rouge_l or contains.")] = "exact_match",
    max_new_tokens: MaxTokensOption = 64,
    log_file: LogFileOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bank on both sides: what it answers of its documents, and what it leaves alone."""
    from ..bank.evaluation import BankEvaluation, parse_questions
    from ..evaluation.metrics import METRICS, check_metric
    from ..text.queries import load_queries
    from ..utils.jsonl import load_rows
    from .bank_tables import show_evaluation
    from .loading import load_model

    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}")
    check_metric(metric)
    options = {"retriever": retriever, "router": router, "gate": gate, "candidates": candidates}
    rows = load_rows(questions, "test")
    with opened(bank) as store, Reporter(log_file=log_file) as reporter:
        asked = parse_questions(rows, [document.key for document in store.documents()])
        loaded = load_model(model)
        others = load_queries(unrelated, loaded[1])[:count] if count else []
        ready = store.open(*loaded, report=reporter.count, **options)
        measured = BankEvaluation(ready, METRICS[metric], max_new_tokens, reporter.count).run(asked, others)
    measured |= {"metric": metric, "options": options}
    if as_json:
        print_json(measured)
    else:
        show_evaluation(measured)


def _before(store: MemoryBank, model: str | None, **options: Any) -> OpenBank:
    """The bank before a model; what must be made first is shown, and what is not as it was trained is said."""
    from .loading import load_model

    with Reporter() as reporter:
        ready = store.open(*load_model(model), report=reporter.count, **options)
    for note in ready.notes:
        say(f"note: {shown(note)}")
    return ready


def _where(answer: BankAnswer) -> str:
    source = f"{answer.source}: {', '.join(map(shown, answer.keys))}" if answer.keys else answer.source
    return f"{source}; {shown(answer.reason)}"
