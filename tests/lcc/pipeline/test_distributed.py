"""Two processes on gloo against one: the same memory to rounding, and files written once."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import lcc
from lcc.embedded_model.tokenizer import build_tokenizer
from lcc.modeling.sharding import is_sharded, placement
from lcc.utils.distributed import Ranks
from tests.support.tiny_models import FAST, compile_leaving_checkpoint, tiny_model

WIDE = FAST | {"ratio": 4, "batch": 5, "steps": 4, "general_queries": 8}
IN_SECTIONS = {"section_tokens": 40, "section_overlap": 10, "across_questions": 2, "steps": 2}


def compile_wide(text: str, compile=lcc.compile, **overrides) -> lcc.Memory:
    """One compilation in float64."""
    return compile(tiny_model("llama", torch.float64), build_tokenizer(), text, **(WIDE | overrides))


def on_ranks(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(rank)`` in ``count`` processes of one gloo group; their errors are raised here."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_join, (count, f"file://{folder}/group", work), nprocs=count)


def _join(rank: int, count: int, meeting: str, work: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    work(rank)
    dist.barrier()
    dist.destroy_process_group()


def refuse_then_compile(folder: str, text: str, rank: int) -> None:
    with pytest.raises(lcc.MismatchError, match=r"different things \(seed\)"):
        compile_wide(text, distributed=True, seed=rank)
    with pytest.raises(lcc.InputError, match="share 1 samples a step"):
        compile_wide(text, distributed=True, general_weight=0.0, self_study_weight=0.0)
    with pytest.raises(lcc.MemoryFileError, match="cannot make the folder"):
        compile_wide(text, distributed=True, checkpoint="/dev/null/run")
    checkpoint = Path(folder, "run")
    memory = compile_wide(text, compile_leaving_checkpoint, distributed=True, folder=checkpoint, checkpoint_every=1)
    memory.save(Path(folder, f"rank{rank}"))
    compile_sharded(folder, text, rank)


def compile_sharded(folder: str, text: str, rank: int) -> None:
    """The same with the weights spread over the processes, as ``accelerate launch --use_fsdp`` asks."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    model, tokenizer = placement(torch.device("cpu"))(tiny_model("llama", torch.float64)), build_tokenizer()
    assert is_sharded(model)
    assert model.model.layers[0].mlp.up_proj.weight.to_local().shape == (32, 48)
    for refused in ({}, {"distributed": True, "engine": "reference"}):
        with pytest.raises(lcc.InputError, match="sharded"):
            lcc.compile(model, tokenizer, text, **(WIDE | refused))
    lcc.compile(model, tokenizer, text, distributed=True, **WIDE).save(Path(folder, f"sharded{rank}"))
    split = lcc.compile(model, tokenizer, text, distributed=True, **WIDE | IN_SECTIONS)
    split.save(Path(folder, f"sections{rank}"))


def test_two_processes_refuse_alike_and_give_the_memory_of_one(text, tmp_path):
    alone, split = compile_wide(text), compile_wide(text, **IN_SECTIONS)
    on_ranks(2, functools.partial(refuse_then_compile, str(tmp_path), text))
    for name, expected in (("sections", split), ("sharded", alone), ("rank", alone)):
        first, second = (lcc.Memory.load(tmp_path / f"{name}{rank}") for rank in (0, 1))
        assert torch.equal(first.kv.keys, second.kv.keys)
        assert torch.equal(first.kv.values, second.kv.values)
        torch.testing.assert_close(first.kv.keys, expected.kv.keys, rtol=0, atol=1e-9)
        torch.testing.assert_close(first.kv.values, expected.kv.values, rtol=0, atol=1e-9)
        assert first.fingerprint == expected.fingerprint
    first = lcc.Memory.load(tmp_path / "rank0")
    for mine, theirs in zip(first.curve, alone.curve, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-9)
        assert mine["held_out_kl"] == pytest.approx(theirs["held_out_kl"], abs=1e-9)
    assert first.questions == alone.questions
    # A single process goes on from what two have left, and finds nothing left to do.
    resumed = compile_wide(text, checkpoint=tmp_path / "run")
    assert torch.equal(resumed.kv.keys, first.kv.keys)


def test_distributed_needs_a_group(text):
    with pytest.raises(lcc.InputError, match="accelerate launch"):
        compile_wide(text, distributed=True)


@dataclass(frozen=True)
class Tokens:
    input_ids: tuple[int, ...]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_a_balanced_partition(count):
    items = [Tokens((0,) * (1 + 37 * index % 23)) for index in range(40)]
    shares = [Ranks(rank, count).share(items) for rank in range(count)]
    assert sorted(id(item) for share in shares for item in share) == sorted(map(id, items))
    loads = [sum(len(item.input_ids) for item in share) for share in shares]
    assert max(loads) - min(loads) <= max(len(item.input_ids) for item in items)


def test_a_lone_process_keeps_the_order_and_the_tensors():
    items = [Tokens((0,) * length) for length in (2, 9, 4)]
    assert Ranks().share(items) == items
    gradients = [torch.ones(2), torch.ones(3, 1)]
    assert all(left is right for left, right in zip(Ranks().sum(gradients), gradients, strict=True))


@pytest.mark.slow
def test_accelerate_launches_the_command(text, tokenizer, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for name in ("first", "second"):
        (tmp_path / f"{name}.txt").write_text(text)
    command = ["-m", "lcc", "compile", tmp_path / "first.txt", tmp_path / "second.txt", "-o", tmp_path / "memories"]
    command += ["--model", tmp_path / "model", "--ratio", "8", "--steps", "2", "--set", "batch=4", "--json"]
    command += ["--set", "general_queries=6", "--set", "self_study_questions=0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), *filter(None, sys.path)])}
    environment |= {"OMP_NUM_THREADS": "1"}

    def statuses(*launcher: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, *launcher, *command], env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return [row["status"] for row in json.loads(done.stdout)["documents"]]

    # On a CPU, accelerate starts several processes only under the flag for GPUs.
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    assert statuses(*launch, "--main_process_port", "0") == ["compiled", "compiled"]
    assert statuses() == ["skipped", "skipped"]
