"""Whatever a file or a setting says, only this package's errors come out, and nothing that acts on a terminal.

``pytest tests/lcc/cli/test_fuzz.py --hypothesis-profile=long`` draws fifty times as many examples.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import lcc
from lcc.cli import app as cli
from lcc.cli.options import parse_settings
from lcc.data.cache import FORMAT as DATA
from lcc.data.cache import DataCache
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.evaluation import load_examples
from lcc.evaluation.endpoint import RetryError
from lcc.evaluation.judge import _parse_verdict
from lcc.evaluation.questions import read_questions
from lcc.pipeline.settings import known_settings, make_settings
from lcc.text.chat_format import ChatFormat
from lcc.text.queries import load_queries
from lcc.training.checkpoint import FORMAT as STATE
from lcc.training.checkpoint import Checkpoint
from lcc.utils.safe_json import JSONError, parse_json
from lcc.utils.tensor_files import load_tensors
from lcc.utils.terminal import ACTING
from tests.support.forge import ANYTHING, HOSTILE, PLAIN, changed, forge
from tests.support.plain_memories import certificate_with
from tests.support.tiny_models import FAST, compile_leaving_checkpoint, tiny_model

TEXT = "Mara lives in Alden. Hugo is a baker. The dog of Mara is called Pim. Hugo likes plums and pears."
COST = {"answers": 1, "tokens": 2, "kl": 0.5, "changed": 0.0}
EXTRAS = {
    "curve": [{"step": 2, "loss": 1.0, "held_out_kl": 0.5, "seconds": 1.0}],
    "quantization": {"source_dtype": "float32", "self_study": COST, "general": COST},
    "certificate": certificate_with({"missed": [{"question": "q", "full_text": "a", "memory": "b"}]}),
    "ratio_search": {"target": 0.9, "met": True, "tried": [{"ratio": 8, "buffer_tokens": 3, "kept": 1.0}]},
    "max_bytes": 10_000,
    "made": {"operation": "update", "parents": ["ab"], "settings": {"ratio": 8}, "version": "1"},
    "lineage": [
        {
            "digest": "ab",
            "compiler": {"name": "lcc"},
            "buffer_tokens": 3,
            "operation": "refine",
            "parents": ["cd"],
            "settings": {"ratio": 4},
            "version": None,
        },
        {
            "digest": "cd",
            "compiler": {"name": "lcc"},
            "buffer_tokens": None,
            "operation": "compile",
            "parents": [],
            "settings": None,
            "version": "1",
        },
    ],
    "questions": ["Where does Mara live?", ["Who?", "Hugo", "And where?"]],
}
runner = CliRunner()
# An example takes as long as a small model takes to answer.
fuzzed = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def world():
    """A model, its tokenizer, and a checkpoint folder and a memory that it compiled."""
    with TemporaryDirectory() as folder:
        model, tokenizer = tiny_model("llama"), build_tokenizer()
        memory = compile_leaving_checkpoint(model, tokenizer, TEXT, Path(folder), **FAST | {"certify": False})
        yield model, tokenizer, memory, Path(folder)


def metadata_of(memory: lcc.Memory) -> dict:
    return json.loads(json.dumps(memory.metadata())) | EXTRAS


@fuzzed
@given(data=st.data())
def test_metadata_of_memories(world, data):
    model, tokenizer, memory, _ = world
    metadata = data.draw(changed(metadata_of(memory)))
    with TemporaryDirectory() as folder:
        path = Path(folder, "m")
        forge(path, memory.tensors(), metadata)
        for words in (["log"], ["log", "--json"], ["inspect"], ["inspect", "--json"]):
            shown = runner.invoke(cli.app, [*words, str(path)])
            assert shown.exit_code in (0, 4), shown.exception
            assert not ACTING.search(shown.output.replace("\n", "")), shown.output
        if shown.exit_code == 0:
            use(model, tokenizer, lcc.Memory.load(path), folder)


def use(model, tokenizer, memory: lcc.Memory, folder: str) -> None:
    for work in (
        lambda: lcc.ask(model, tokenizer, memory, ["Where?"], max_new_tokens=2),
        lambda: lcc.quantize(memory, "int8", model, tokenizer, answers=1, max_new_tokens=2),
        lambda: lcc.export(model, memory, Path(folder, "out"), "safetensors"),
    ):
        with suppress(lcc.LCCError):
            work()


@fuzzed
@given(data=st.data())
def test_tensors_of_memories(world, data):
    model, tokenizer, memory, _ = world
    tensors = dict(memory.tensors())
    name = data.draw(st.sampled_from(["keys", "values", "key_scale", "value_scale", "settings", "\x1b"]))
    shape = data.draw(st.one_of(st.just(memory.kv.keys.shape), st.lists(st.integers(0, 3), max_size=5)))
    kind = data.draw(
        st.sampled_from(
            [torch.float32, torch.float16, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.bool, torch.complex64]
        )
    )
    filling = data.draw(st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -1.0, 1e-40]))
    tensors[name] = torch.full(tuple(shape), filling).to(kind)
    with TemporaryDirectory() as folder:
        path = Path(folder, "m")
        forge(path, tensors, metadata_of(memory))
        try:
            found = lcc.Memory.load(path)
        except lcc.MemoryFileError:
            return
        use(model, tokenizer, found, folder)


@fuzzed
@given(content=st.one_of(st.binary(max_size=300), st.just(b""), HOSTILE.map(str.encode)), kept=st.integers(0, 500))
def test_bytes_of_memories(world, content, kept):
    memory = world[2]
    with TemporaryDirectory() as folder:
        path = Path(folder, "m")
        memory.save(path)
        path.write_bytes(path.read_bytes()[:kept] + content)
        assert runner.invoke(cli.app, ["inspect", str(path)]).exit_code == 4


ROW = {
    "context": "Mara lives in Alden.", "question": "Where?", "answer": ["Alden"], "answer_prefix": "", "task": "t",
    "max_new_tokens": 4, "metric": "f1", "history": [["Who?", "Ada"]], "general": False, "query": "Say: dog.",
}  # fmt: skip
LINES = st.one_of(
    changed(ROW).map(json.dumps),
    st.text(max_size=50),
    st.sampled_from(["[" * 9999, '{"a":' * 9999, '{"query": NaN}', '{"query": "\\ud800"}', "9" * 5000, "-Infinity"]),
)


@fuzzed
@given(lines=st.lists(LINES, max_size=3))
def test_jsonl(world, lines):
    model, tokenizer, _, _ = world
    with TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        for read in (
            lambda: load_examples(str(path), 1),
            lambda: load_queries(path),
            lambda: read_questions(path, TEXT, model, tokenizer),
        ):
            with suppress(lcc.InputError):
                read()


@fuzzed
@given(text=st.one_of(LINES, st.binary(max_size=50), ANYTHING.map(json.dumps)))
def test_json(text):
    try:
        value = parse_json(text)
    except JSONError:
        return
    assert json.loads(json.dumps(value).encode()) == value


@fuzzed
@given(reply=st.one_of(LINES, ANYTHING.map(json.dumps), PLAIN.map(lambda score: json.dumps({"score": score}))))
def test_replies_of_judges(reply):
    with suppress(RetryError):
        assert 0 <= _parse_verdict(reply).score <= 5


@fuzzed
@given(
    name=st.one_of(st.sampled_from(sorted(known_settings())), st.text(max_size=9)),
    value=st.one_of(ANYTHING, st.floats(), st.text(st.characters(), max_size=5)),
)
def test_settings(name, value):
    for give in (
        lambda: make_settings(**{name: value}),
        lambda: make_settings(**parse_settings([f"{name}={value}"])),
    ):
        with suppress(lcc.InputError):
            json.dumps(give().flat(), allow_nan=False)


@fuzzed
@given(data=st.data(), kind=st.sampled_from([DATA, STATE]))
def test_checkpoints(world, data, kind):
    folder = world[3]
    name = "surrogate" if kind == DATA else "state"
    tensors, metadata = load_tensors(folder / f"{name}.safetensors", kind)
    with TemporaryDirectory() as other:
        forge(Path(other, f"{name}.safetensors"), tensors, data.draw(changed(metadata)), kind)
        with suppress(lcc.MemoryFileError, lcc.MismatchError):
            if kind == DATA:
                DataCache(Path(other), metadata["identity"]).load(torch.device("cpu"))
            else:
                Checkpoint(Path(other), metadata["identity"], metadata["data"]).load()


PIECES = st.sampled_from(
    ["{{", "}}", "{%", "%}", "for m in messages", "endfor", "m.content", "m['role']", "if m", "endif", " * 9", " / 0",
     "raise_exception(1)", "messages[7].x.y", "bos_token", "namespace()", "|tojson", "|nope", "m.__class__", "\u2045"]
)  # fmt: skip


@fuzzed
@given(data=st.data())
def test_chat_templates(data):
    tokenizer = build_tokenizer()
    template = tokenizer.chat_template
    begin, end = sorted(data.draw(st.tuples(st.integers(0, len(template)), st.integers(0, len(template)))))
    middle = data.draw(st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=6).map(" ".join))
    tokenizer.chat_template = template[:begin] + middle + template[end:]
    with suppress(lcc.InputError):
        ChatFormat.of(tokenizer).query_ids("Where?")
