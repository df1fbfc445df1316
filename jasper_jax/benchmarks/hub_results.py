"""An export's results by MTEB as the hub reads them beside a model: one file of its folder ``.eval_results``.

The format is https://huggingface.co/docs/hub/eval-results; the names of tasks are those that MTEB registers there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import mteb  # pyright: ignore[reportMissingImports]
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from jasper_jax.assets.models import HUB_ID
from jasper_jax.benchmarks.model_meta import revision
from jasper_jax.benchmarks.run import refuse_links_out
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.shell import shell_word

if TYPE_CHECKING:
    from mteb.results import TaskResult  # pyright: ignore[reportMissingImports]

_SOURCE = "https://github.com/embeddings-benchmark/mteb/"


def hub_results(export: Path, results: Path) -> bytes:
    """The YAML file with the scores in ``results``, a folder of ``jasper mteb``, of just this ``export``.

    They are in percent, at the model's own dimension and with its own prompts; other dimensions are experiments.

    Raises:
      UserError: ``results`` has none of this export, or links to others'.
    """
    refuse_links_out(results / "results")
    own = revision(export)
    # Its constructor makes the folder.
    cache = mteb.ResultCache(results) if (results / "results").is_dir() else None
    found = [
        result
        for result in (cache.load_results(include_remote=False).model_results if cache else ())
        if result.model_revision == own and not (result.model_meta and result.model_meta.experiment_kwargs)
    ]
    entries = [entry for result in found for task in result.task_results for entry in _entries(task)]
    if not entries:
        raise UserError(
            f"{results}: no results of {export} by tasks whose data are on the hub; run jasper mteb"
            f" {shell_word(export)}"
        )
    entries.sort(key=lambda entry: (entry.dataset_id, entry.task_id))
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False).encode()


def _entries(result: TaskResult) -> Iterator[EvalResultEntry]:
    """Of each split and subset, then of the task if it was scored by all of them."""
    task = mteb.get_task(result.task_name).metadata
    data = task.dataset["path"]
    if not HUB_ID.fullmatch(data):
        return

    def entry(task_id: str, score: float) -> EvalResultEntry:
        return EvalResultEntry(
            dataset_id=data,
            task_id=task_id,
            value=round(100 * float(score), 5),
            dataset_revision=result.dataset_revision,
            date=None if result.date is None else result.date.date().isoformat(),
            source_url=_SOURCE,
            notes=f"MTEB {result.mteb_version}",
        )

    subsets: set[str] = set()
    for split, scores in result.scores.items():
        for score in scores:
            subsets.add(score["hf_subset"])
            yield entry(f"{task.name}_{score['hf_subset']}_{split}", score["main_score"])
    if {*result.scores} == {*task.eval_splits} and subsets == {*task.hf_subsets}:
        yield entry(task.name, result.get_score())
