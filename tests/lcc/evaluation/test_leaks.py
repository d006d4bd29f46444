"""The leak test: a memory that is its text tells all, none tells nothing, and figures hold no words."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import chain, pairwise

import pytest

import lcc
from lcc.evaluation.attacks import Attacker
from lcc.evaluation.known_texts import ASKED, KnownTexts, located
from lcc.evaluation.leaks import leaks
from lcc.evaluation.recitation import Runs
from lcc.synthetic.people import document
from lcc.text.chat_format import ChatFormat
from lcc.text.redaction import occurrences, redact
from lcc.utils.hashing import text_digest
from tests.support.plain_memories import plain_memory
from tests.support.tokenizers_by_kind import byte_bpe, gpt2, sentencepiece_bpe

DOCUMENT = document(random.Random(3), people=4, attributes=4)
TEXT = DOCUMENT.text
FIRST, SECOND = (fact.sentence for fact in DOCUMENT.facts[:2])


@pytest.fixture
def memory_of(embedded, monkeypatch):
    """A memory that holds a text itself, with a digest that may be another's."""
    model, tokenizer = embedded

    def make(held: str, text: str = TEXT, **fields):
        memory, _ = plain_memory(model, tokenizer, held, monkeypatch)
        return replace(memory, source_sha256=text_digest(text), **fields)

    return make


@pytest.fixture
def tested(embedded):
    def run(memory, text=TEXT, **options):
        return leaks(*embedded, memory, text, progress=False, **{"attempts": 1} | options)

    return run


def test_a_memory_that_is_its_text_tells_all(embedded, memory_of, tested):
    value = DOCUMENT.facts[3].value
    report = tested(memory_of(TEXT), marks=[FIRST], canaries=[value])
    assert report.recited > 0.85
    for attack in report.attacks.values():
        assert attack["recited"]["memory"] == attack["recited"]["full_text"] > attack["recited"]["no_text"] == 0
        assert attack["longest"]["memory"] == attack["longest"]["full_text"] > 5 * attack["longest"]["no_text"]
    canary, passages = report.canaries[0], report.passages
    assert canary["exposure"]["memory"] == canary["exposure"]["full_text"] > 6 > canary["exposure"]["no_text"]
    assert canary["written"] == {"full_text": True, "memory": True, "no_text": False}
    assert passages["recited"] == {"full_text": 1, "memory": 1, "no_text": 0}
    assert passages["same"]["memory"] == 1 > passages["same"]["no_text"]
    assert (passages["count"], passages["tokens"]) == (1, len(ChatFormat.of(embedded[1]).ids(FIRST)))


@pytest.fixture
def narrow(embedded, monkeypatch):
    """A window in which the text can be read at once, and not repeated."""
    chat = ChatFormat.of(embedded[1])
    window = len(chat.prefix_ids) + ASKED + len(chat.ids(TEXT))
    monkeypatch.setattr(embedded[0].config, "max_position_embeddings", window)
    return chat


def test_a_text_that_cannot_be_repeated_at_once_is_read_in_parts(embedded, narrow, memory_of, tested):
    known = KnownTexts(embedded[0], narrow, [TEXT], 20)
    assert len(known.parts) > 2
    assert tuple(chain(*(part.ids[-(part.end - part.start) :] for part in known.parts))) == known.ids[0]
    assert all(part.ids[:20] == before.ids[-20:] for before, part in pairwise(known.parts))
    sentences = [DOCUMENT.facts[0].sentence, DOCUMENT.facts[-1].sentence]
    report = tested(memory_of(TEXT), marks=sentences, canaries=[DOCUMENT.facts[3].value])
    for attack in report.attacks.values():
        assert attack["recited"]["full_text"] > 0.8
        assert attack["recited"]["memory"] > 0.8
    assert report.passages["recited"] == {"full_text": 1, "memory": 1, "no_text": 0}
    assert report.passages["same"]["full_text"] == 1
    exposure = report.canaries[0]["exposure"]
    assert exposure["full_text"] > 6 > exposure["no_text"]


def test_a_memory_of_two_texts(embedded, memory_of, tested):
    first, second = (document(random.Random(seed), people=2, attributes=4) for seed in (3, 9))
    marks = [first.facts[0].sentence, second.facts[0].sentence]
    digest = text_digest(text_digest(first.text) + text_digest(second.text))
    update = {"growing": True, "text_tokens": 9, "text_sha256": text_digest(second.text)}
    memory = replace(memory_of(f"{first.text} {second.text}"), source_sha256=digest, update=update)
    report = tested(memory, [first.text, second.text], marks=marks)
    assert report.recited > 0.85
    assert report.passages["recited"] == {"full_text": 1, "memory": 1, "no_text": 0}
    chat = ChatFormat.of(embedded[1])
    assert report.tokens == sum(len(chat.ids(each.text)) for each in (first, second))
    for wrong in (first.text, [second.text, first.text], [f"{first.text} {second.text}"]):
        with pytest.raises(lcc.MismatchError, match="in order, all that it took in since"):
            tested(memory, wrong)
    left = redact(first.text, [marks[0]], embedded[1])
    digest = text_digest(text_digest(left) + text_digest(second.text))
    honest = replace(memory_of(f"{left} {second.text}"), source_sha256=digest, redacted=1)
    assert tested(honest, [first.text, second.text], redacted=[marks[0]]).recited == 0


def test_a_memory_of_something_else_tells_nothing(memory_of, tested):
    other = document(random.Random(9), people=2, attributes=4).text
    report = tested(memory_of(other), marks=[FIRST])
    assert report.recited == 0
    assert report.passages["same"]["memory"] < 0.5
    assert report.attacks["asked"]["recited"]["full_text"] > 0.85


def test_what_the_file_says_in_words(memory_of, tested):
    """Nobody has to ask a model for a canary that stands in a question."""
    fact = DOCUMENT.facts[0]
    conversation = ("Where is it?", fact.sentence, "And then?")
    memory = replace(memory_of("dog"), questions=("Where?", conversation))
    report = tested(memory, canaries=[fact.value, DOCUMENT.facts[3].value], run=5)
    assert report.file["canaries"] == [True, False]
    assert report.file["strings"] == 4
    assert report.recited == report.file["recited"] > 0 == report.attacks["asked"]["recited"]["memory"]
    assert report.file["longest"] >= 5
    stripped = tested(lcc.strip(memory), canaries=[fact.value], run=5).file
    assert stripped == {"strings": 0, "recited": 0, "longest": 0, "canaries": [False]}


def test_half_of_a_text_is_half_of_it(memory_of, tested):
    sentences = [fact.sentence for fact in DOCUMENT.facts]
    half = " ".join(sentences[: len(sentences) // 2])
    assert tested(memory_of(half)).recited == pytest.approx(0.5, abs=0.15)


def test_redacted_passages_are_what_is_looked_for(embedded, memory_of, tested):
    left = redact(TEXT, [FIRST, SECOND], embedded[1])
    kept, honest = memory_of(TEXT, left, redacted=2), memory_of(left, left, redacted=2)
    told = tested(kept, redacted=[FIRST, SECOND], canaries=[DOCUMENT.facts[0].value])
    silent = tested(honest, redacted=[FIRST, SECOND])
    assert told.redacted == silent.redacted == 2
    assert told.tokens == silent.tokens == sum(len(ChatFormat.of(embedded[1]).ids(each)) for each in (FIRST, SECOND))
    assert told.recited == told.passages["recited"]["memory"] == 1
    assert silent.recited == silent.passages["recited"]["full_text"] == 0
    assert told.passages["same"]["memory"] > silent.passages["same"]["memory"]
    assert told.canaries[0]["exposure"]["memory"] > told.canaries[0]["exposure"]["full_text"]


def test_nothing_counts_that_an_attacker_was_given(embedded, memory_of):
    """A reader without any text is told the words before passages, and repeats them in its answers."""
    words = "Ada Boris"
    text = " ".join(f"{words} {fact.sentence}" for fact in DOCUMENT.facts)
    report = leaks(*embedded, memory_of("dog", text), text, marks=[words], run=4, attempts=1, progress=False)
    assert report.passages["recited"]["no_text"] == 0


@pytest.mark.parametrize("run", [1, 2, 20])
def test_an_attacker_knows_no_more_than_half_a_run(run, memory_of, tested, monkeypatch, embedded):
    known = []
    monkeypatch.setattr(
        Attacker, "attack", lambda self, *_: known.extend(self.known) or {"asked": [[]], "sampled": [[]]}
    )
    left = redact(TEXT, [FIRST, SECOND], embedded[1])
    tested(memory_of(left, left), redacted=[FIRST, SECOND], canaries=[DOCUMENT.facts[5].value], run=run)
    chat = ChatFormat.of(embedded[1])
    assert not any(chat.ids(DOCUMENT.facts[5].value)[0] in words for words in known)
    tested(memory_of(TEXT), marks=[SECOND], run=run)
    assert run < 20 or max(map(len, known)) == 10
    assert all(0 < len(words) <= run / 2 for words in known)
    for words in known:
        assert max(Runs(chat.ids(SECOND)).longest([words])) <= 4


def test_the_same_seed_draws_the_same(memory_of, tested):
    memory = memory_of(TEXT)
    first, again = (tested(memory, seed=5).to_dict() for _ in range(2))
    assert first | {"seconds": 0} == again | {"seconds": 0}


def test_figures_are_kept_without_words(memory_of, tested, tmp_path):
    report = tested(memory_of(TEXT), marks=[FIRST], canaries=["Varna" if "Varna" in TEXT else DOCUMENT.facts[0].value])
    path = tmp_path / "kept.lcc.safetensors"
    replace(memory_of(TEXT), leaks=report.to_dict()).save(path)
    assert lcc.Memory.load(path).leaks == json.loads(json.dumps(report.to_dict()))
    written = path.read_bytes()
    assert not any(fact.value.encode() in written for fact in DOCUMENT.facts if len(fact.value) > 3)
    broken = report.to_dict()
    del broken["recited"]
    with pytest.raises(lcc.InputError, match=r"leaks has no recited"):
        replace(memory_of(TEXT), leaks=broken)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"text": "Mara lives in Tarn."}, lcc.MismatchError, "another text"),
        ({"redacted": [FIRST]}, lcc.MismatchError, "no passage of it was redacted"),
        ({"marks": ["not there"]}, lcc.InputError, "marks"),
        ({"canaries": "drum"}, lcc.InputError, "one string"),
        ({"attempts": 0}, lcc.InputError, "attempts"),
        ({"run": 0}, lcc.InputError, "run"),
        ({"seed": 1.5}, lcc.InputError, "seed"),
        ({"text": None}, lcc.InputError, "text"),
        ({"text": []}, lcc.InputError, "text is empty"),
        ({"text": [TEXT, " "]}, lcc.InputError, "text is empty"),
    ],
)
def test_what_cannot_be_tested(options, error, words, memory_of, tested):
    with pytest.raises(error, match=words):
        tested(memory_of(TEXT), **options)


def test_the_memory_of_another_model(memory_of, tested):
    memory = memory_of(TEXT)
    with pytest.raises(lcc.MismatchError, match="model_weights"):
        tested(replace(memory, fingerprint=memory.fingerprint | {"model_weights": "0"}))


def test_more_than_is_allowed(memory_of, tested):
    report = tested(memory_of(TEXT))
    report.require_at_most(1.0)
    with pytest.raises(lcc.LeakError, match=r"recites \d+\.\d% of"):
        report.require_at_most(0.5)


@pytest.mark.parametrize("kind", [byte_bpe, gpt2, sentencepiece_bpe])
@pytest.mark.parametrize("passage", ["So", "Tarn", "mers  say: S/s", "S/s>", 'ab."', "ab.", "The end,\nT. of"])
def test_a_passage_is_tokens_of_the_text(kind, passage):
    """Also one that begins or ends inside a token: ``s>`` and ``</`` are one each."""
    text = 'So says Tarn. "The drummers say: S/s> 12 ab."\nThe end, T. of </s> S/s> 12 ab.'
    tokenizer = kind()
    chat = ChatFormat.of(tokenizer)
    ids = tuple(chat.ids(text))
    before, own = located(chat, text, ids, passage)
    assert ids[: len(before) + len(own)] == before + own
    written = tokenizer.decode(own)
    assert occurrences(written, passage)
    assert len(written.strip()) <= len(passage) + 2
    assert not occurrences(tokenizer.decode(before), passage)


@pytest.mark.parametrize("kind", ["kv", "adapter", "int8"])
def test_memories_of_every_kind(kind, llama, tokenizer, text, fast):
    compiler = "adapter" if kind == "adapter" else "lcc"
    memory = lcc.compile(llama, tokenizer, text, **fast | {"compiler": compiler, "certify": False})
    if kind == "int8":
        memory = lcc.quantize(memory, kind, llama, tokenizer, answers=1)
    first = text.split()[0]
    report = leaks(llama, tokenizer, memory, text, canaries=[first], attempts=1, progress=False)
    assert report.attacks["asked"]["prompts"] > 1
    assert 0 <= report.recited <= 1
