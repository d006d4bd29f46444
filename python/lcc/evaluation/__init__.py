"""What a memory keeps of a text, and what it does to everything else: examples, methods, metrics and their summary."""

from .examples import Example, beside, parse_examples
from .judge import Judge, Verdict
from .methods import Answers, FullText, MemoryMethod, Method, NoText, answer_examples
from .metrics import METRICS
from .runner import Result, evaluate
from .sources import load_examples, load_general
from .summary import Line, summarize

__all__ = [
    "METRICS",
    "Answers",
    "Example",
    "FullText",
    "Judge",
    "Line",
    "MemoryMethod",
    "Method",
    "NoText",
    "Result",
    "Verdict",
    "answer_examples",
    "beside",
    "evaluate",
    "load_examples",
    "load_general",
    "parse_examples",
    "summarize",
]
