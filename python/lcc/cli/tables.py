"""Tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.table import Table

from ..memory.memory import Memory
from ..pipeline.batch import Outcome
from ..pipeline.plan_figures import Plan
from ..synthetic.people import Document
from ..utils.device_memory import gibibytes
from ..utils.terminal import Terminal, shown
from .demo import DemoReport

SHOWN_QUESTIONS = 12
READERS = ("full_text", "memory", "no_text")

ADAPTER = "rank {rank}, alpha {alpha:g}, {adapted_layers} linear layers, {dtype}, cache sharing {cache_sharing}"
# What came of asking, as it is shown.
ASKED = (
    ("sampled", "sampled"),
    ("ended", "came to an end"),
    ("distinct", "were distinct"),
    ("about", "about the text"),
    ("kept", "kept"),
)


def show_document(document: Document) -> None:
    """The beginning of the document that the demo compiles."""
    facts = document.facts
    beginning = shown(" ".join(fact.sentence for fact in facts[:4]))
    title = f"an unseen document: {len(facts)} facts about {len(document.names)} people"
    Terminal().print(Panel(f"{beginning} [dim]… and {len(facts) - 4} sentences more[/dim]", title=title))


def show_demo(report: DemoReport) -> None:
    """The demo's answers, scores, bytes and times."""
    terminal = Terminal()
    terminal.print(_answers(report))
    terminal.print(_scores(report))
    terminal.print(
        f"{report.text_tokens} tokens of text became {report.buffer_tokens} buffer tokens in "
        f"{report.compile_seconds:.0f} s ({report.steps} steps, held-out KL {_nats(report.held_out_kl)} nats a token). "
        f"{report.unseen_wordings} of {len(report.rows)} questions did not occur among the {report.self_questions} "
        "that compile asked itself."
    )


def _answers(report: DemoReport) -> Table:
    table = Table(title=f"{SHOWN_QUESTIONS} of {len(report.rows)} questions about the document (seed {report.seed})")
    for heading in ("question", "full text", "memory", "nothing"):
        table.add_column(heading)
    for row in report.rows[:: max(1, len(report.rows) // SHOWN_QUESTIONS)][:SHOWN_QUESTIONS]:
        table.add_row(shown(row.question), *(_mark(a, row.expected) for a in (row.full_text, row.memory, row.no_text)))
    return table


def _mark(answer: str, expected: str) -> str:
    colour = "green" if answer == expected else "red"
    return f"[{colour}]{shown(answer) or '(empty)'}[/{colour}]"


def _scores(report: DemoReport) -> Table:
    table = Table(title=f"exact answers at ratio {report.ratio:g}")
    for heading in ("", "full text", "memory", "nothing"):
        table.add_column(heading, justify="left" if not heading else "right")
    scores, general = report.scores, report.general
    table.add_row("questions", *(percent(scores[name]) for name in ("full_text", "memory", "no_text")))
    table.add_row("  in wordings not asked by compile", "", percent(scores["memory_unseen_wording"]), "")
    table.add_row("general queries", percent(general["full_text"]), percent(general["memory"]), "")
    table.add_row("KV cache", *(f"{report.kv_bytes[name] / 1024:.0f} KiB" for name in ("full_text", "memory")), "")
    times = (f"{report.time_to_first_token[name] * 1000:.1f} ms" for name in ("full_text", "memory"))
    table.add_row("time to first token", *times, "")
    return table


def percent(share: float | None) -> str:
    """A share for people; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _nats(divergence: float | None, digits: str = ".4f") -> str:
    return "-" if divergence is None else format(divergence, digits)


def show_memory(memory: Memory, path: Path) -> None:
    """What ``lcc inspect`` says."""
    summary = memory.summary()
    table = Table(title=shown(path), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("text", f"{memory.source_tokens} tokens, SHA-256 {shown(memory.source_sha256)}")
    size = ", ".join(f"{part} {size / 1024:.1f} KiB" for part, size in summary["bytes"].items())
    for name, figures in (*_shape(memory, summary), ("size", size), *_quantization_costs(memory.quantization or {})):
        table.add_row(name, figures)
    table.add_row("prefix", f"{len(memory.prefix_ids)} tokens")
    table.add_row("rope", _pairs(memory.rope))
    if memory.curve:
        table.add_row("steps", f"{memory.curve[-1]['step']:g}, {memory.curve[-1]['seconds']:.1f} s")
    if best := memory.best_point:
        table.add_row("held-out KL", f"{best['held_out_kl']:.4f} nats a token at step {best['step']:g}")
    table.add_row("self-asked questions", str(len(memory.questions)))
    if memory.asking:
        asking = memory.asking
        counts = (f"{asking[name]:,} {what}" for name, what in ASKED)
        table.add_row("  asked", f"by {asking['asker'].replace('_', ' ')}: {', '.join(counts)}")
    for name, digest in memory.fingerprint.items():
        table.add_row(shown(name.replace("_", " ")), shown(digest[:16]))
    table.add_row("compiler", _pairs(memory.compiler))
    for name, others in _others(memory):
        table.add_row(name, others)
    if memory.budget:
        state = "finished" if memory.budget["finished"] else "unfinished: run the command again to go on"
        table.add_row("budget", f"{memory.budget['seconds']:g} s, {state}")
    table.add_row("settings", _pairs(memory.settings))
    for tried in (memory.ratio_search or {"tried": []})["tried"]:
        kept = f"keeps {percent(tried['kept'])}, {tried['buffer_tokens']} buffer tokens"
        table.add_row(f"tried ratio {tried['ratio']:g}", kept)
    terminal = Terminal()
    terminal.print(table)
    if memory.certificate:
        terminal.print(_certificate(memory.certificate, memory.dtype))


def _others(memory: Memory) -> Iterator[tuple[str, str]]:
    """Rows on memories that this one has to do with, and on servers that it was asked behind."""
    version = memory.made["version"]
    yield "made by", shown(memory.made["operation"] + (f", version {version}" if version else ""))
    for ancestor in memory.lineage:
        yield "went on from", f"{_pairs(ancestor['compiler'])}, tensors {shown(ancestor['digest'][:16])}"
    if memory.redacted:
        yield "redacted", f"{memory.redacted} passages"
    if memory.leaks:
        whose = "the redacted passages" if memory.leaks["redacted"] else "the text"
        yield "recited", f"{percent(memory.leaks['recited'])} of {whose} at most ({memory.leaks['date']})"
    if taken := memory.update:
        how = "buffer tokens were added" if taken["growing"] else "its size stayed"
        text = shown(taken["text_sha256"][:16])
        yield "took in last", f"{taken['text_tokens']} tokens of text, SHA-256 {text}; {how}"
    yield "distractors", f"{len(memory.distractors) or 'no'} memories of other texts"
    for row in memory.served:
        same = f"{row['same']} of {row['answers']} answers are those of lcc ask ({row['date']})"
        yield shown(f"served by {row['engine']}, {row['dtype']}"), shown(same)


def _shape(memory: Memory, summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows on what a memory holds for the model."""
    if lora := summary.get("adapter"):
        yield "adapter", shown(f"{ADAPTER.format(**summary | lora)} ({', '.join(lora['targets'])})")
        return
    yield "buffer tokens", f"{memory.buffer_tokens} (ratio {memory.ratio:g})"
    if memory.sections:
        sizes = ", ".join(f"{section['tokens']} → {section['buffer_tokens']}" for section in memory.sections)
        yield "sections", f"{len(memory.sections)}, tokens → buffer tokens: {sizes}"
    yield "shape", "{layers} layers x {kv_heads} KV heads x {head_dim}, {dtype}".format(**summary)
    if memory.max_bytes:
        yield "size budget", f"{memory.max_bytes:,} bytes; the file has {memory.file_bytes:,}"


def _pairs(named: Mapping[str, Any]) -> str:
    return ", ".join(shown(f"{name} {value}") for name, value in named.items() if value is not None)


def _certificate(measured: dict[str, Any], dtype: str) -> Table:
    """What the memory keeps and changes, a reader a column."""
    of = f" of the {shown(measured['dtype'])} memory, before it became {dtype}" if measured["dtype"] != dtype else ""
    behind = "; the full text is read behind the old memory" if "rehearsed" in measured else ""
    table = Table(title=f"certificate{of}{behind}")
    for heading in ("", "full text", "memory", "nothing"):
        table.add_column(heading, justify="right" if heading else "left")

    def add(what: str, figures: dict[str, Any], formatted: Callable[[Any], str] = percent) -> None:
        table.add_row(what, *(formatted(figures[name]) if name in figures else "" for name in READERS))

    questions, held_out, general = measured["questions"], measured["held_out"], measured["general"]
    if questions:
        asked = {"given": "given", "self_asked": "self-asked, held out"}[questions["source"]]
        add(f"score on {questions['count']} questions ({asked})", questions["score"])
        add("  of the full text's", {"memory": questions["kept"]})
    repeated = measured["reconstruction"]
    add(f"{repeated['tokens']} tokens of text repeated right", repeated["accuracy"])
    if held_out:
        add(f"KL from the full text, {held_out['answers']} held-out answers", held_out["kl"], _nats)
    if rehearsed := measured.get("rehearsed"):
        if asked := rehearsed["questions"]:
            add(f"score on {asked['count']} old questions (the old memory)", asked["score"])
        if answered := rehearsed["held_out"]:
            add(f"KL from the old memory, {answered['answers']} held-out answers", answered["kl"], _nats)
    for reference, words in (("from_full_text", "the full text"), ("from_no_text", "nothing")):
        drift = general[reference]
        kls, shares = ({name: each[figure] for name, each in drift.items()} for figure in ("kl", "changed"))
        add(f"KL from {words}, {general['answers']} general queries", kls, _nats)
        add("  answers changed", shares)
    return table


def _quantization_costs(measured: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A row for each stream of questions that quantising was measured on."""
    for stream, asked in (("self_study", "self-asked questions"), ("general", "general queries")):
        if stream in measured:
            cost, source = measured[stream], shown(measured["source_dtype"])
            changed = f"{percent(cost['changed'])} of {cost['answers']} answers changed"
            yield f"quantised, {asked}", f"{_nats(cost['kl'], '.2g')} nats a token from {source}, {changed}"


def show_outcomes(outcomes: Sequence[Outcome]) -> None:
    """What became of each document, and how many of them came to each end."""
    table = Table()
    for heading in ("document", "", "seconds", "memory, or what went wrong"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "seconds" else "left")
    for outcome in outcomes:
        colour = "red" if outcome.status == "failed" else "green"
        status = f"[{colour}]{outcome.status}[/{colour}]"
        table.add_row(shown(outcome.source), status, f"{outcome.seconds:.1f}", shown(outcome.error or outcome.output))
    Terminal().print(table)
    counts = Counter(outcome.status for outcome in outcomes)
    Terminal().print(", ".join(f"{count} {status}" for status, count in counts.items()))


def show_plan(plan: Plan, source: str) -> None:
    """What ``lcc compile --dry-run`` says."""
    table = Table(title=shown(source), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    split = f", in {plan.sections} sections" if plan.sections > 1 else ""
    tokens = f"{plan.text_tokens} text, {plan.buffer_tokens} buffer, {plan.prefix_tokens} prefix{split}"
    table.add_row("tokens", tokens)
    table.add_row("teacher", f"{plan.queries} answers of about {plan.response_tokens:g} tokens")
    table.add_row("steps", f"{plan.steps} at most, of {plan.step_tokens} tokens")
    table.add_row("FLOPs", f"{plan.step_flops:.3g} a step, {plan.total_flops:.3g} in all")
    measured = plan.measured_step_bytes
    met = "" if measured is None else f" if answers are as long as they may be ({gibibytes(measured)} as they are)"
    parts = f"step {gibibytes(plan.step_bytes)}{met}, LoRA and optimizer {gibibytes(plan.state_bytes)}"
    table.add_row("peak memory", f"{gibibytes(plan.needed_bytes)}: {parts}, teacher {gibibytes(plan.teacher_bytes)}")
    free = "unknown" if plan.available_bytes is None else gibibytes(plan.available_bytes)
    table.add_row("free memory", f"{free} beside the model's {gibibytes(plan.weight_bytes)}, on {plan.device}")
    times = f"{plan.teacher_seconds:.1f} s + {plan.steps} x {plan.step_seconds:.3f} s"
    table.add_row("expected time", f"{plan.total_seconds:.0f} s ({times}; {_probed(plan)})")
    if plan.settled:
        table.add_row("settled", ", ".join(f"{name} {value}" for name, value in plan.settled.items()))
    table.add_row("verdict", "[green]it fits[/green]" if plan.fits else "[red]it does not fit[/red]")
    for advice in plan.advice:
        table.add_row("try", shown(advice))
    Terminal().print(table)


def _probed(plan: Plan) -> str:
    if plan.sections > 1:
        return "a few steps of the longest section timed"
    if plan.probed_tokens == plan.text_tokens:
        return "a few steps timed"
    return f"timed on the first {plan.probed_tokens} tokens"
