"""Compilers by name: the package's own, a user's own, and what is refused by name."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import lcc
from lcc.cli.options import parse_settings
from lcc.compilers import registry
from lcc.modeling.prefill import prefill
from lcc.pipeline.settings import KEYWORDS, make_settings
from tests.lcc.pipeline.test_compile import fail_at


@dataclass(frozen=True)
class FirstSettings(lcc.SettingsGroup):
    skipped: int = 0

    def check_ranges(self):
        self.require_not_negative("skipped")


class First(lcc.BaseCompiler):
    """K and V of the text's first tokens; trains nothing and asks for no data."""

    name = "first"
    Settings = FirstSettings

    def compile(self, task):
        prefix = prefill(task.model, task.context.prefix_ids)
        ids = task.context.context_ids[task.settings.skipped :][: task.context.buffer]
        kv = prefill(task.model, ids, prefix).tail(task.context.buffer)
        return lcc.Compiled(lcc.KVPayload(kv.unrotated(task.model)))


@pytest.fixture
def first(monkeypatch):
    own = {name: type(registry.get(name)) for name in registry._FILES}  # a module registers once a process
    monkeypatch.setattr(registry, "_registered", own)
    return lcc.register(First)


def test_a_compiler_of_a_users_own(first, llama, tokenizer, text, tmp_path):
    memory = lcc.compile(llama, tokenizer, text, compiler="first", ratio=4, skipped=2, progress=False)
    assert memory.compiler == {"name": "first"}
    assert memory.settings["skipped"] == 2
    assert "rank" not in memory.settings
    assert (memory.curve, memory.questions) == ([], ())
    assert memory.certificate["held_out"] is memory.certificate["questions"] is None
    assert memory.certificate["general"]["answers"] == 4
    memory.save(tmp_path / "m")
    loaded = lcc.Memory.load(tmp_path / "m")
    ids = tokenizer(text).input_ids[2:][: memory.buffer_tokens]
    seen = lcc.attach(llama, loaded).kv()
    with torch.no_grad():
        expected = prefill(llama, [*loaded.prefix_ids, *ids])
    torch.testing.assert_close(seen.keys, expected.keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen.values, expected.values, rtol=1e-5, atol=1e-5)
    given = lcc.compile(llama, tokenizer, text, compiler=First(), ratio=4, skipped=2, progress=False, certify=False)
    assert torch.equal(given.kv.keys, memory.kv.keys)


def test_settings_belong_to_their_compiler(first):
    assert make_settings(compiler="first", skipped=3, batch=8).flat()["batch"] == 8
    with pytest.raises(lcc.InputError, match="rank is a setting of the compiler 'lcc', and 'direct_kv' has none"):
        make_settings(compiler="direct_kv", rank=8)
    with pytest.raises(lcc.InputError, match="skipped is a setting of the compiler 'first'"):
        make_settings(skipped=3)
    with pytest.raises(lcc.InputError, match="did you mean skipped"):
        make_settings(compiler="first", skiped=3)
    with pytest.raises(lcc.InputError, match="skipped is -1"):
        make_settings(compiler="first", skipped=-1)


def test_a_compilers_own_defaults_stand_before_the_recipe():
    assert make_settings(compiler="direct_kv").training.learning_rate == 0.1
    assert make_settings("paper", "direct_kv").training.learning_rate == 2e-5
    assert make_settings(compiler="direct_kv", learning_rate=0.5).training.learning_rate == 0.5
    assert make_settings().training.learning_rate == 0.03


def test_no_setting_hides_a_keyword_of_compile():
    keywords = inspect.signature(lcc.compile).parameters.keys() - {"settings"}
    assert keywords == KEYWORDS


def test_unknown_compilers_and_names_that_are_taken(first):
    assert registry.names() == ["lcc", "direct_kv", "attention_matching", "gradmem", "flashmem", "adapter", "first"]
    with pytest.raises(lcc.InputError, match="unknown compiler 'direct_kw'; did you mean direct_kv"):
        registry.get("direct_kw")
    for wrong in (5, First, None):
        with pytest.raises(lcc.InputError, match=r"the name of a compiler is|give an object of it"):
            registry.get(wrong)

    class Taken(lcc.BaseCompiler):
        name = "lcc"

        def compile(self, task):
            raise AssertionError

    with pytest.raises(lcc.InputError, match="there is a compiler 'lcc' already"):
        lcc.register(Taken)
    Taken.name = "first"
    with pytest.raises(lcc.InputError, match="there is a compiler 'first' already"):
        lcc.register(Taken)
    assert lcc.register(First) is First


def test_a_setting_that_every_compiler_has_is_refused():
    @dataclass(frozen=True)
    class Steps(lcc.SettingsGroup):
        steps: int = 7

    class Stepping(First):
        Settings = Steps

    with pytest.raises(lcc.InputError, match="settings of its own whose names are taken: steps"):
        make_settings(compiler=Stepping())


BROKEN = {
    "no name": ({"name": None}, "the name of a compiler is None"),
    "a name of signs": ({"name": "a b"}, "the name of a compiler is 'a b'"),
    "no settings": ({"Settings": dict}, "must be an lcc.SettingsGroup"),
    "no compile": ({"compile": None}, "lacks compile or fingerprint"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_compiler_is_refused_by_name(what):
    changes, message = BROKEN[what]
    broken = type("Broken", (First,), changes)
    for use in (lambda: lcc.register(broken), lambda: make_settings(compiler=broken())):
        with pytest.raises(lcc.InputError, match=message):
            use()
    with pytest.raises(lcc.InputError, match="is no class"):
        lcc.register(First())


def test_settings_that_cannot_be_made_are_refused():
    @dataclass(frozen=True)
    class Needed(lcc.SettingsGroup):
        depth: int

    with pytest.raises(lcc.InputError, match="with a default for each field"):
        lcc.register(type("Broken", (First,), {"Settings": Needed}))


@pytest.fixture
def returning(llama, tokenizer, text, fast):
    """Compile with a compiler that returns what ``make`` makes of the task."""

    def run(make, **overrides):
        class Own(First):
            def compile(self, task):
                return make(task, super().compile(task))

        return lcc.compile(llama, tokenizer, text, compiler=Own(), **fast | overrides)

    return run


def change_weights(task, compiled):
    with torch.no_grad():
        next(task.model.parameters()).add_(0.01)
    return compiled


def rotated(task, compiled):
    return lcc.Compiled(lcc.KVPayload(compiled.payload.kv.rotated(task.model, 0)))


def twice(task, compiled):
    kv = compiled.payload.kv
    return lcc.Compiled(lcc.KVPayload(kv.after(kv)))


WRONG = {
    "nothing": (lambda *_: None, "returned a NoneType; it must return lcc.Compiled"),
    "a payload": (lambda task, compiled: compiled.payload, "returned a KVPayload; it must return"),
    "K and V": (lambda task, compiled: lcc.Compiled(compiled.payload.kv), "returned a KV; it must return"),
    "too many tokens": (twice, r"returned \d+ tokens; there is room for"),
    "rotated keys": (rotated, "keys before rotation"),
    "other weights": (change_weights, r"changed the model \(model_weights\)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_compiler_must_not_return_is_refused(what, returning):
    make, message = WRONG[what]
    with pytest.raises(lcc.InputError, match=message):
        returning(make)


def test_the_certificate_asks_nothing_that_the_compiler_was_given(returning, data_made):
    def with_data(task, compiled):
        assert task.data() is task.data()
        return compiled

    memory = returning(with_data)
    assert len(data_made) == 1
    assert set(memory.questions) == data_made[0].self_questions
    assert memory.certificate["held_out"]["answers"] == len(data_made[0].held_out)


def test_gradients_end_with_the_compiler(returning):
    def attached(task, compiled):
        kv = compiled.payload.kv
        return lcc.Compiled(lcc.KVPayload(lcc.KV(kv.keys.requires_grad_(), kv.values)))

    memory = returning(attached)
    assert not memory.kv.keys.requires_grad
    copy.deepcopy(memory)


def test_a_checkpoint_of_another_compilation_is_not_touched(
    returning, llama, tokenizer, text, fast, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        fail_at(patch, 3, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            lcc.compile(llama, tokenizer, text, checkpoint=tmp_path / "run", checkpoint_every=1, **fast)
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(lcc.MismatchError, match=r"differs in .*to start afresh, add --force"):
        returning(lambda task, compiled: compiled, checkpoint=tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    returning(lambda task, compiled: compiled, checkpoint=tmp_path / "run", restart=True)
    assert not (tmp_path / "run").exists()


def test_lists_are_tuples(monkeypatch):
    assert make_settings(targets=["q_proj"]).compiler.targets == ("q_proj",)

    @dataclass(frozen=True)
    class Layers(lcc.SettingsGroup):
        layers: tuple[int, ...] = ()

    layered = type("Layered", (First,), {"Settings": Layers, "name": "layered"})
    monkeypatch.setattr(registry, "_registered", registry._registered | {"layered": layered})
    assert make_settings(compiler="layered", layers=[1, 2]).compiler.layers == (1, 2)
    assert parse_settings(["layers=1,2"], compiler="layered") == {"layers": (1, 2)}
    with pytest.raises(lcc.InputError, match="layers"):
        parse_settings(["layers=1,x"], compiler="layered")


def test_a_broken_plugin_is_named_and_breaks_nothing_else(first, monkeypatch):
    def broken():
        raise ModuleNotFoundError("no plugmod")

    plugins = [SimpleNamespace(name="broken", value="plugmod:Nope", load=broken)]
    plugins.append(SimpleNamespace(name="other", value="mine:First", load=lambda: First))
    monkeypatch.setattr(
        registry, "entry_points", lambda group, name=None: [p for p in plugins if name in (None, p.name)]
    )
    with pytest.raises(lcc.InputError, match="unknown setting 'stepz'"):
        make_settings(stepz=3)
    with pytest.raises(lcc.InputError, match="'broken' of plugmod:Nope cannot be loaded: no plugmod"):
        registry.get("broken")
    with pytest.raises(lcc.InputError, match="calls itself 'first' and its entry point 'other'"):
        registry.get("other")


def test_another_package_names_its_compiler(first, monkeypatch):
    """As an installed package does, in its entry points."""
    registry._registered.pop("first")
    plugin = SimpleNamespace(name="first", load=lambda: First)
    monkeypatch.setattr(registry, "entry_points", lambda group, name="first": [plugin] * (name == "first"))
    assert registry.names() == ["lcc", "direct_kv", "attention_matching", "gradmem", "flashmem", "adapter", "first"]
    assert isinstance(registry.get("first"), First)
