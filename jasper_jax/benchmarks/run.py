"""``jasper mteb``: a model at its dimensions on tasks of MTEB; results, summary and ModelMeta in one folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mteb import ResultCache  # pyright: ignore[reportMissingImports]

from jasper_jax.benchmarks.encoder import BACKENDS, Model, MtebEncoder, jax_model, torch_model
from jasper_jax.benchmarks.model_meta import as_module, at_dimension, model_meta
from jasper_jax.benchmarks.scoring import quiet, score_tasks
from jasper_jax.benchmarks.summary import read_scores
from jasper_jax.evaluation.benchmark_scores import FILE, BenchmarkScores, write
from jasper_jax.evaluation.folders import refuse_dims
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.inside import refuse_links

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask  # pyright: ignore[reportMissingImports]


@dataclass(frozen=True)
class Benchmarked:
    scores: BenchmarkScores
    """Of all models whose results are in the folder."""
    meta: Path
    """The file with the model's ModelMeta."""
    failed: Mapping[str, str]
    """Tasks without a score, and why."""


def run_benchmark(
    folder: Path,
    name: str,
    tasks: Sequence[AbsTask],
    output: Path,
    *,
    dims: Sequence[int] = (),
    beside: bool = False,
    prompts: Mapping[str, str] | None = None,
    backend: str = "jax",
    batch_tokens: int | None = None,
) -> Benchmarked:
    """Score the model of ``folder`` by ``tasks``, into ``output/results`` as MTEB lays it out, and into
    ``output/summary.json`` beside all models there.

    Args:
      name: ``organisation/name`` of the model in the results.
      dims: dimensions; none: the model's own. One that it has no head for is cut from its own vectors. Other
        dimensions than the model's own, other prompts and another backend are experiments in MTEB's sense, in folders
        of their own.
      beside: the model is there to be compared with: it is scored at its own dimension, and at those of ``dims`` that
        are below.
      prompts: prompts by names of tasks, types of tasks, ``query`` and ``document``, in place of the folder's.
      backend: ``jax``, or ``sentence-transformers`` in PyTorch, which has only the folder's default dimension to cut.

    Raises:
      UserError: a wrong dimension or backend, a model that cannot be read, vectors that are not finite; a link out of
        the results, which may be somebody else's: MTEB would read and write what is behind it.
    """
    if backend not in BACKENDS:
        raise UserError(f"--backend {backend}: allowed are {' and '.join(BACKENDS)}")
    if backend != "jax" and batch_tokens is not None:
        raise UserError("--batch-tokens is for --backend jax; sentence-transformers makes batches of its own")
    refuse_links_out(output / "results")
    prompts = dict(prompts or {})
    with quiet():
        model = jax_model(folder, prompts, batch_tokens) if backend == "jax" else torch_model(folder, prompts)
        if beside:
            dims = [model.default_dim, *(dim for dim in dims if dim < model.default_dim)]
        refuse_dims(str(folder), dims, model.dims, model.default_dim)
        meta = model_meta(name, folder, model)
        cache = ResultCache(output)
        meta_file = output / f"{meta.model_name_as_path()}.py"
        if not meta_file.is_file():  # people complete it
            write_atomic(meta_file, as_module(meta))
        encoders = [
            MtebEncoder(model, dim, at_dimension(meta, dim, _experiment(model, dim, prompts, backend)))
            for dim in dict.fromkeys(dims) or [model.default_dim]
        ]
        failed = score_tasks(encoders, tasks, cache)
        scored = read_scores(cache, tasks)
        write(output / FILE, scored)
    return Benchmarked(scored, meta_file, failed)


def refuse_links_out(results: Path) -> None:
    """UserError: something in the folder ``results`` is a link out of it, or no regular file."""
    try:
        refuse_links(results)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: is a link to nothing, which a result would be written to; delete it"
        ) from None


def _experiment(model: Model, dim: int, prompts: Mapping[str, str], backend: str) -> dict[str, Any]:
    """What makes vectors of one dimension differ from the model's own."""
    digest = hashlib.sha256(repr(sorted(prompts.items())).encode()).hexdigest()[:8]
    return {
        **({"vectors": "cut"} if dim not in model.dims else {}),
        **({"prompts": digest} if prompts else {}),
        **({"backend": backend} if backend != "jax" else {}),
    }
