"""Many documents over a Ray cluster: one task a document, on a file system that all nodes see."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..pipeline.batch import Job, Outcome, compile_job, make_jobs
from ..pipeline.options import CompileOptions, Run
from ..utils.progress import Reporter, reporting
from .loading import load_model

# How often Ray starts a task again whose worker died.
RETRIES = 3


def compile_on_ray(
    model: str | None,
    sources: Iterable[str | Path],
    folder: str | Path,
    *,
    address: str,
    force: bool = False,
    progress: bool | Reporter = True,
    **options: Any,
) -> list[Outcome]:
    """``lcc.compile_documents`` with one Ray task a document; a worker loads the model once.

    Each task takes a GPU if the cluster has any, else a CPU core. A task whose worker dies is started again and goes
    on from the document's checkpoint.

    Args:
        model: a folder or hub name that every node can load; None for the embedded model.
        sources, folder: on a file system that all nodes see.
        address: of a Ray cluster, or ``local`` for one on this machine that ends with the call.
        **options: those of ``lcc.compile_documents``.

    Returns:
        One outcome a document, in their order.

    Raises:
        InputError: Ray is not installed or cannot be reached, or the documents cannot be used together.
    """
    try:
        import ray
    except ImportError:
        raise InputError("ray is not installed: pip install 'lcc-kernels[ray]'") from None
    jobs = [job.absolute() for job in make_jobs(sources, folder, options.get("queries"), options.get("questions"))]
    chosen, run = CompileOptions.of(**options), Run(restart=force)
    try:
        ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster at {address}: {error}") from error
    try:
        share = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        work = ray.remote(max_retries=RETRIES, **share)(_compile_in_worker)
        waiting = {work.remote(model, chosen, run, job): index for index, job in enumerate(jobs)}
        outcomes: dict[int, Outcome] = {}
        with reporting(progress) as reporter:
            reporter.document("", 0, len(jobs))
            while waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                index = waiting.pop(ready)
                try:
                    outcomes[index] = ray.get(ready)
                except ray.exceptions.RayError as error:
                    job = jobs[index]
                    outcomes[index] = Outcome(str(job.source), str(job.output), "failed", 0.0, str(error))
                reporter.document(jobs[index].source.name, len(outcomes), len(jobs))
        return [outcomes[index] for index in range(len(jobs))]
    finally:
        ray.shutdown()


def _compile_in_worker(model: str | None, options: CompileOptions, run: Run, job: Job) -> Outcome:
    with Reporter(False) as reporter:
        return compile_job(*_load_once(model), job, options, run, reporter)


@lru_cache(maxsize=1)
def _load_once(model: str | None) -> tuple[Any, Any]:
    return load_model(model)
