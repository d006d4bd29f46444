"""Compilers by name: the package's own, a user's own, and what is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import lcc
from lcc.compilers import registry
from lcc.modeling.prefill import prefill
from lcc.pipeline.settings import make_settings


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
    own = {name: compiler for name, compiler in registry._registered.items() if name in registry._FILES}
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


def test_unknown_compilers_and_names_that_are_taken(first):
    assert registry.names() == ["lcc", "direct_kv", "first"]
    with pytest.raises(lcc.InputError, match="unknown compiler 'direct_kw'; did you mean direct_kv"):
        registry.get("direct_kw")
    for wrong in (5, First, None):
        with pytest.raises(lcc.InputError, match="give a name, or an object"):
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

    with pytest.raises(lcc.InputError, match="settings of its own that every compiler has: steps"):
        make_settings(compiler=Stepping())


def test_another_package_names_its_compiler(first, monkeypatch):
    """As an installed package does, in its entry points."""
    registry._registered.pop("first")
    plugin = SimpleNamespace(name="first", load=lambda: First)
    monkeypatch.setattr(registry, "entry_points", lambda group, name="first": [plugin] * (name == "first"))
    assert registry.names() == ["lcc", "direct_kv", "first"]
    assert isinstance(registry.get("first"), First)
