"""``jasper push``: an export as a model of the hub, and the texts and vectors of its run as a data set."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from jasper_jax.checkpoints.export_marker import MARKER, own_files, read_marker, refuse_damaged
from jasper_jax.export.own_code import refuse_other_code
from jasper_jax.publishing.repository import Repository
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.progress import bar

RESULTS = ".eval_results/jasper_jax.yaml"
"""Scores by MTEB in the repository; those of an earlier export leave with it."""


def push_export(folder: Path, name: str, *, private: bool, results: Path | None = None) -> str:
    """Send the export in ``folder`` to the model repository ``name``; its address.

    Sent are the files that the marker names, each checked against its sha256; nothing else of the folder. ``results``:
    a folder of ``jasper mteb``, whose scores of this export go with it.

    Raises:
      UserError: no export, one that was changed, or one with code of others; ``results`` without scores of it; see
        :class:`Repository`.
    """
    read_marker(folder)
    refuse_damaged(folder)
    refuse_other_code(folder)
    own = sorted(own_files(read_record_bytes(folder / MARKER)))
    files = {file: file_inside(folder / file, folder) for file in own if (folder / file).exists()}
    if missing := next((file for file in own if file not in files and file != "README.md"), None):
        raise UserError(f"{folder / missing}: missing; `jasper export` writes the folder again")
    scores = None if results is None else _scores(folder, results)
    repository = Repository(name, "model", MARKER, private=private, named=lambda text: own_files(text) | {RESULTS})
    repository.prepare()
    with bar(f"sending {name}", len(files), "files") as progress:
        for file, path in files.items():
            repository.send(path, file)
            progress.advance(note=file)
    if scores is not None:
        repository.send(scores, RESULTS)
    return repository.commit("An export by jasper_jax")


def _scores(folder: Path, results: Path) -> bytes:
    if find_spec("mteb") is None:
        raise UserError("--results needs mteb, which reads them: pip install 'jasper-jax[mteb]'")
    from jasper_jax.benchmarks.hub_results import hub_results
    from jasper_jax.benchmarks.scoring import quiet

    with quiet():
        return hub_results(folder, results)
