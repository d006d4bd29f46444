"""The distillation data of a text in sections, one section or pair of sections after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from ..data.across import ask_across
from ..data.cache import DataCache
from ..data.parts import Parts
from ..data.samples import SELF_ASKED, Across, DistillationData, Sample
from ..data.sections import joined, section_pairs
from ..data.synthesis import hold_out
from ..data.teacher import Teacher
from ..data.teacher_states import TeacherStates
from ..modeling.prefill import prefill
from ..text.chat_format import Query
from ..text.context import Context
from ..utils.distributed import Ranks
from ..utils.progress import Reporter
from .distillation import distillation_data, kept_or_made
from .settings import CompileSettings

# Context-agnostic queries of a section at least.
LEAST_GENERAL = 32
# The cache of one section's data, or of two sections' joined, made with these settings.
CacheOf = Callable[[Context, CompileSettings], DataCache | None]


@dataclass(frozen=True)
class SectionTexts:
    """The sections of one text, and what their data is made with."""

    model: PreTrainedModel
    sections: tuple[Context, ...]
    settings: CompileSettings
    queries: Sequence[str] | str
    cache_of: CacheOf
    reporter: Reporter
    ranks: Ranks

    def data(self) -> DistillationData:
        """Of each section; and across pairs, whose number grows as that of the sections does.

        A question that several sections answer in several ways is no question about the text: it is left out.
        """
        count = len(self.sections)
        pairs = section_pairs(count, self.settings.seed) if self.settings.effective_data.across_questions else []
        total = count + len(pairs)
        sections: list[DistillationData] = []
        for number in range(count):
            self.reporter.section(f"section {number + 1}", number, total)
            sections.append(self._of_section(number, sections))
        across: list[Across] = []
        for pair in pairs:
            self.reporter.section(f"sections {pair[0] + 1} and {pair[1] + 1}", count + len(across), total)
            across.append(self._across(pair, sections))
        self.reporter.section(f"all {count} together", total, total)
        return consistent(sections, across)

    def _of_section(self, number: int, before: Sequence[DistillationData]) -> DistillationData:
        section, neighbour = self.sections[number], number + 1 if number + 1 < len(self.sections) else number - 1
        first, second = (self.sections[place] for place in sorted((number, neighbour)))
        settings = self._settings(number).for_text(len(section.context_ids))
        general = max(LEAST_GENERAL, settings.data.general_queries // len(self.sections))
        settings = settings.replace(general_queries=min(general, settings.data.general_queries))
        cache, wider = self.cache_of(section, settings), joined(first, second)
        settings = settings.replace(self_study_asker=self._asker(before))
        given = (self.queries, cache, self.reporter, self.ranks)
        return distillation_data(self.model, section, settings, *given, wider)

    def _across(self, pair: tuple[int, int], sections: Sequence[DistillationData]) -> Across:
        first, second = (self.sections[number] for number in pair)
        both, settings = joined(first, second), self._settings(pair[1])
        asker, count = self._asker(sections), settings.data.across_questions
        asked = settings.replace(self_study_asker=asker, self_study_questions=count).data

        def make(model: PreTrainedModel, states: TeacherStates, parts: Parts | None) -> DistillationData:
            prefix = prefill(model, both.prefix_ids)
            alone = [prefill(model, one.context_ids, prefix) for one in (first, second)]
            text_kv = prefill(model, both.context_ids[len(first.context_ids) :], alone[0])
            teacher = Teacher(model, both, text_kv, asked.max_response_tokens, states, parts, alone)
            samples = ask_across(teacher, first, second, asked, settings.seed, self.reporter.count)
            held_out = hold_out(samples, asked.held_out)
            return DistillationData((), tuple(s for s in samples if s not in held_out), tuple(held_out))

        data = kept_or_made(self.model, settings, self.cache_of(both, settings), self.ranks, make, repeats=False)
        return Across(pair, data.train, data.held_out)

    def _asker(self, before: Sequence[DistillationData]) -> str:
        """The one that asks about a section: what suits the model is seen on the first of them."""
        return next((own.asking["asker"] for own in before if own.asking), self.settings.data.self_study_asker)

    def _settings(self, number: int) -> CompileSettings:
        """Other draws for each section, and no more teacher states in memory than one text has."""
        shared = self.settings.execution.teacher_gigabytes / (3 * len(self.sections))
        return self.settings.replace(seed=self.settings.seed + number, teacher_gigabytes=shared)


def consistent(sections: Sequence[DistillationData], across: Sequence[Across]) -> DistillationData:
    """The data of all sections, without the questions that have several answers."""
    answers: defaultdict[Query, set[tuple[int, ...]]] = defaultdict(set)
    every: list[DistillationData | Across] = [*sections, *across]
    for own in every:
        for sample in (*own.train, *own.held_out):
            answers[sample.query].add(sample.response_ids)

    def kept(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(s for s in samples if s.stream not in SELF_ASKED or len(answers[s.query]) == 1)

    return DistillationData.of_sections(
        [replace(own, train=kept(own.train), held_out=kept(own.held_out)) for own in sections],
        [replace(own, train=kept(own.train), held_out=kept(own.held_out)) for own in across],
    )
