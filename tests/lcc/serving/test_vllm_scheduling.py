"""What the connector does in vLLM's scheduler, with requests that have vLLM's fields: nothing raises, nothing mixes."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from lcc.errors import InputError
from lcc.serving.memory_files import served_digest
from lcc.serving.vllm_scheduling import FILES, KnownFiles, Wanted, external_tokens, salted, wanted_by
from lcc.serving.vllm_versions import CONNECTOR, UPDATE, check_signatures, check_update, check_version
from tests.support.small_memories import small_memory

TOKENS = 4
PROMPT = (7,) * TOKENS + (1, 2)


class Request(SimpleNamespace):
    """A request as vLLM's scheduler has it, with hashes of two tokens a block."""

    def __init__(self, params, prompt=PROMPT, salt=None, skips=False, lora=None, number=0):
        super().__init__(
            kv_transfer_params=params, prompt_token_ids=list(prompt), num_prompt_tokens=len(prompt),
            num_tokens=len(prompt), cache_salt=salt, skip_reading_prefix_cache=skips, lora_request=lora,
            request_id=f"request {number}", block_hashes=["old"],
        )  # fmt: skip

    def update_block_hashes(self):
        parent = self.cache_salt or ""
        for start in range(0, len(self.prompt_token_ids) - 1, 2):
            parent = hashlib.sha256(f"{parent} {self.prompt_token_ids[start : start + 2]}".encode()).hexdigest()
            self.block_hashes.append(parent)


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        small_memory(f"the text {name}", model=name).save(tmp_path / f"{name}.lcc.safetensors")
    return tmp_path


def hashes(folder, params, **options) -> list[str]:
    request = Request(params, **options)
    wanted = wanted_by(request, KnownFiles(folder))
    if wanted is not None:
        salted(request, wanted)
    else:
        request.block_hashes.clear()
        request.update_block_hashes()
    assert "old" not in request.block_hashes
    return request.block_hashes


def test_a_memory_is_found_by_its_id_and_its_tokens_counted(folder):
    wanted = wanted_by(Request({"memory": "a"}), KnownFiles(folder))
    assert (wanted.tokens, wanted.failure) == (TOKENS, "")
    assert [file.path for file in wanted.files] == ["a.lcc.safetensors"]
    several = wanted_by(Request({"memories": ["b", "a"]}, (7,) * 6 + (1,)), KnownFiles(folder))
    assert (several.tokens, [file.path[0] for file in several.files]) == (6, ["b", "a"])
    for params in (None, {}, {"do_remote_prefill": True}):
        assert wanted_by(Request(params), KnownFiles(folder)) is None


def test_blocks_are_shared_by_one_memory_and_nobody_else(folder):
    one = hashes(folder, {"memory": "a"})
    assert hashes(folder, {"memory": "a"}, number=1) == one
    others = [
        hashes(folder, {"memory": "b"}),
        hashes(folder, None),
        hashes(folder, {"memory": "a"}, salt="mine"),
        hashes(folder, {"memory": "a"}, skips=True),
        hashes(folder, {"memory": "a"}, skips=True, number=1),
        hashes(folder, {"memory": "nobody"}),
        hashes(folder, {"memory": "nobody"}, number=1),
        hashes(folder, {"memories": ["a", "b"]}, prompt=(7,) * 6 + (1,)),
        hashes(folder, {"memories": ["b", "a"]}, prompt=(7,) * 6 + (1,)),
    ]
    firsts = [one[0], *(other[0] for other in others)]
    assert len(set(firsts)) == len(firsts)


def test_no_client_forges_a_salt(folder):
    """vLLM's HTTP API takes no @ in a client's salt; ours are told apart from all without one."""
    request = Request({"memory": "a"}, salt="x")
    salted(request, wanted_by(request, KnownFiles(folder)))
    assert request.cache_salt.count("@") == 3
    assert request.cache_salt.endswith("@x")


def test_a_copy_under_another_name_shares_and_a_replaced_file_does_not(folder):
    known = KnownFiles(folder)
    path = folder / "a.lcc.safetensors"
    (folder / "copy.lcc.safetensors").write_bytes(path.read_bytes())
    digests = [wanted_by(Request({"memory": name}), known).files[0].digest for name in ("a", "copy")]
    assert digests[0] == digests[1]
    small_memory("another text", model="another").save(path)
    again = wanted_by(Request({"memory": "a"}), known).files[0].digest
    assert again not in digests
    stale = {FILES: [["a.lcc.safetensors", digests[0]]]}
    assert "replaced" in wanted_by(Request(stale), known).failure


@pytest.mark.parametrize(
    "params",
    [
        {"memory": "nobody"}, {"memory": "../a"}, {"memory": "/etc/passwd"}, {"memory": 7}, {"memory": ""},
        {"memories": []}, {"memories": "a"}, {"memories": [None]}, {"memory": "a", "memories": ["b"]},
        {FILES: [["../../a.lcc.safetensors", "x"]]}, {FILES: 3}, {FILES: [["a.lcc.safetensors"]]},
        {FILES: [["a.lcc.safetensors", "0" * 64]]}, {"memory": "torn"}, {"memory": "a\0"}, {"memory": "a" * 5000},
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_marked_and_never_raises(params, folder):
    (folder / "torn.lcc.safetensors").write_bytes((folder / "a.lcc.safetensors").read_bytes()[:-1])
    request = Request(params)
    wanted = wanted_by(request, KnownFiles(folder))
    salted(request, wanted)
    assert wanted.failure
    assert request.request_id in request.cache_salt


def test_a_prompt_without_placeholders_and_a_lora_are_marked(folder):
    for options in ({"prompt": (7,) * TOKENS}, {"prompt": (7, 7, 8, 7, 1, 2)}, {"prompt": (1,)}, {"lora": object()}):
        assert wanted_by(Request({"memory": "a"}, **options), KnownFiles(folder)).failure


def test_the_last_token_of_a_prompt_is_always_computed():
    wanted, failed = Wanted((), 4), Wanted((), 0, "why")
    request = Request({})
    assert [external_tokens(request, wanted, computed) for computed in (0, 2, 4, 5)] == [4, 2, 0, 0]
    assert external_tokens(request, Wanted((), 100), 0) == len(PROMPT) - 1
    assert external_tokens(request, failed, 0) == len(PROMPT) - 1


def test_the_digest_is_of_all_that_a_question_sees():
    one, *others = (
        small_memory("a", model="a"), small_memory("a", model="b"), small_memory("a", model="a", prefix_ids=(1, 3)),
    )  # fmt: skip
    assert served_digest(one) == served_digest(small_memory("a", "A question?", model="a"))
    assert all(served_digest(other) != served_digest(one) for other in others)


def test_versions_that_were_not_tested_are_refused():
    for version in ("0.32.0", "0.32.4+cpu", "0.32"):
        check_version(version)
    for version in ("0.31.9", "0.33.0", "1.0", "dev", ""):
        with pytest.raises(InputError, match=r"0\.32 to below 0\.33"):
            check_version(version)


def test_methods_that_are_called_otherwise_are_refused():
    def method(names):
        return eval(f"lambda {', '.join(f'**{name}' if name == 'kwargs' else name for name in names)}: None")

    good = type("Base", (), {name: method(names) for name, names in CONNECTOR.items()})
    check_signatures(good)
    renamed = type("Base", (good,), {"wait_for_save": method(["self", "timeout"])})
    with pytest.raises(InputError, match="wait_for_save takes"):
        check_signatures(renamed)
    with pytest.raises(InputError, match="on_new_request"):
        check_signatures(object)
    check_update(SimpleNamespace(do_kv_cache_update=method(UPDATE)))
    with pytest.raises(InputError, match="SimpleNamespace does not write"):
        check_update(SimpleNamespace(do_kv_cache_update=method(["kv_c_normed", "k_pe"])))
