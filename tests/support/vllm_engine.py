"""Asks a real vLLM engine in this process, run by the python of vLLM's own environment; prints JSON.

    PYTHON -m tests.support.vllm_engine TASK.json

The task names the model, the folder of memories, and for each case the prompts. No front end is in between: what it
would refuse reaches the engine here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
BLOCK = 32


def engine(task: dict[str, Any]) -> Any:
    """An engine with room for a few requests alone."""
    from vllm import LLM

    return LLM(
        model=task["model"], max_model_len=task["window"], enforce_eager=True, dtype="float32", block_size=BLOCK,
        num_gpu_blocks_override=task["blocks"], disable_log_stats=False, scheduler_reserve_full_isl=False,
        kv_transfer_config={
            "kv_connector": "LCCConnector",
            "kv_connector_module_path": "lcc.serving.vllm_connector",
            "kv_role": "kv_consumer",
            "kv_connector_extra_config": {"folder": task["folder"], "cache": task["cache"]},
        },
    )  # fmt: skip


def answered(llm: Any, case: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What comes of requests that are made together."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": one["ids"]} for one in case]
    sampling = [
        SamplingParams(temperature=0, extra_args={"kv_transfer_params": one["memory"]}, **one["sampling"])
        for one in case
    ]
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return [
        {
            "ids": list(output.outputs[0].token_ids),
            "finish": output.outputs[0].finish_reason,
            "cached": output.num_cached_tokens,
            "told": output.kv_transfer_params,
        }
        for output in outputs
    ]


def preemptions(llm: Any) -> int:
    return int(sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"))


def refusals() -> dict[str, str]:
    """What the connector says of set-ups that it does not take; empty where it takes them."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    from lcc.errors import InputError
    from lcc.serving import vllm_connector

    def group(kind: type) -> SimpleNamespace:
        return SimpleNamespace(kv_cache_spec=object.__new__(kind))

    def said(policy: str = "fail", mla: bool = False, speculative: str | None = None, groups: Any = None) -> str:
        config = SimpleNamespace(
            kv_transfer_config=SimpleNamespace(kv_load_failure_policy=policy),
            model_config=SimpleNamespace(use_mla=mla),
            speculative_config=speculative and SimpleNamespace(method=speculative),
        )
        try:
            vllm_connector._check_config(config, SimpleNamespace(kv_cache_groups=groups or [group(FullAttentionSpec)]))
        except InputError as error:
            return str(error)
        return ""

    return {
        "none": said(),
        "ngram": said(speculative="ngram"),
        "policy": said(policy="recompute"),
        "mla": said(mla=True),
        "eagle": said(speculative="eagle"),
        "groups": said(groups=[group(FullAttentionSpec), group(SlidingWindowSpec)]),
        "window": said(groups=[group(SlidingWindowSpec)]),
    }


def heads() -> dict[str, list[int]]:
    """The first and last key head of each worker, by ``heads of workers``."""
    from lcc.serving import vllm_connector

    slices = {}
    for total, size in ((8, 2), (8, 8), (2, 4), (1, 3)):
        vllm_connector.get_tensor_model_parallel_world_size = lambda size=size: size
        for rank in range(size):
            vllm_connector.get_tensor_model_parallel_rank = lambda rank=rank: rank
            here = vllm_connector._heads_of_rank(total)
            slices[f"{total} {size} {rank}"] = [here.start, here.stop]
    return slices


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    llm = engine(task)
    results: dict[str, Any] = {}
    for name, steps in task["cases"].items():
        before = preemptions(llm)
        results[name] = {"steps": [answered(llm, step) for step in steps], "preemptions": preemptions(llm) - before}
    results |= {"refusals": refusals(), "heads": heads()}
    Path(task["out"]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
