"""General queries that the model writes itself: it goes on in the open user turn of its chat, with no text in front.

So the queries need no data of anybody's, and they are of the kind that the model takes users to ask
(Xu et al., Magpie, arXiv 2406.08464).
"""

from __future__ import annotations

from ..modeling.decoding import Prompt, Sampling
from ..utils.progress import Report
from .askers import OpenTurn
from .teacher import Teacher

TEMPERATURE = 1.0
# So many times the queries that are wanted are begun, at most.
TRIES = 4
STAGE = "writing queries"


def own_queries(teacher: Teacher, count: int, seed: int, report: Report) -> list[str]:
    """Up to ``count`` distinct queries that came to an end."""
    written = OpenTurn(teacher.chat, teacher.ends).question
    *_, last = teacher.context.prefix_ids
    before = teacher.prefix_kv.head(len(teacher.prefix_kv) - 1)
    queries: dict[str, None] = {}
    begun = 0
    while len(queries) < count and begun < TRIES * count:
        missing = min(2 * (count - len(queries)), TRIES * count - begun)
        prompts = [Prompt((last,), key=f"general {begun + number}") for number in range(missing)]
        begun += missing
        texts = teacher.write(
            STAGE, before, prompts, teacher.ends, Sampling(TEMPERATURE, str(seed)), written, lambda _: None
        )
        queries |= dict.fromkeys(filter(None, texts))
        report(STAGE, min(len(queries), count), count)
    return list(queries)[:count]
