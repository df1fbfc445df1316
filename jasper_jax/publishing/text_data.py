"""The texts and teacher vectors of a run as a data set of the hub: Parquet, a configuration for each teacher.

``texts/train-00000.parquet`` has the columns text and kind, ``<teacher>/train-00000.parquet`` also embedding: what a
recipe reads with ``{hf: NAME, config: texts}`` and ``jasper vectors import`` as a teacher. A file holds ``ROWS`` texts
and is written, sent and deleted before the next, so that the disk needs room for one.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from jasper_jax.data.stores import DataStores
from jasper_jax.data.texts import TextStore
from jasper_jax.publishing.repository import Repository
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import stores_dir
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import folder_inside, refuse_links
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.markdown import code_span, markdown_text
from jasper_jax.runtime.progress import bar
from jasper_jax.teachers.vectors import VectorStore

MARKER = "jasper-texts.json"
ROWS = 65_536
SPLITS = ("train", "held_out")


def push_texts(recipe: Recipe, name: str, *, private: bool) -> str:
    """Send the text store of ``recipe`` and the vectors of its teachers to the data set ``name``; its address.

    Raises:
      UserError: the stores are not complete, or links to others; see :class:`Repository`.
    """
    folder = DataStores(recipe).text_folder
    _refuse_elsewhere(recipe, folder)
    texts = TextStore.find(folder)
    if texts is None:
        raise UserError(f"{folder}: no text store; --with-vectors needs the run that made the export, with its stores")
    stores = _vectors(recipe, texts)
    repository = Repository(name, "dataset", MARKER, private=private, named=_named)
    repository.prepare()
    parts = {
        f"{'texts' if store is None else store.name}/{split}-{number:05d}.parquet": (store, split, rows)
        for store in (None, *stores)
        for split in SPLITS
        for number, rows in enumerate(_blocks(texts, store, split))
    }
    with tempfile.TemporaryDirectory() as place, bar(f"sending {name}", len(parts), "files") as progress:
        for file, part in parts.items():
            path = Path(place) / "part.parquet"
            pq.write_table(_table(texts, *part), path)
            repository.send(path, file)
            progress.advance(note=file)
        (Path(place) / "README.md").write_text(_card(recipe, texts, stores), "utf-8")
        (Path(place) / MARKER).write_text(
            json.dumps({"made_by": "jasper_jax", "files": list(parts)}, indent=2), "utf-8"
        )
        for file in ("README.md", MARKER):
            repository.send(Path(place) / file, file)
        return repository.commit("Texts and vectors by jasper_jax")


def _vectors(recipe: Recipe, texts: TextStore) -> list[VectorStore]:
    """The stored vectors of the recipe's teachers; one that runs in the step has none."""
    folders = {teacher.name: stores_dir(recipe) / "vectors" / teacher.name for teacher in recipe.teachers}
    for folder in folders.values():
        _refuse_elsewhere(recipe, folder)
    return [VectorStore.open(folder, texts) for folder in folders.values() if folder.is_dir()]


def _refuse_elsewhere(recipe: Recipe, folder: Path) -> None:
    """UserError: the store in ``folder`` is a link to others, or has one: theirs would be sent."""
    stores = stores_dir(recipe)
    refuse_links(folder_inside(stores, str(folder.relative_to(stores))))


def _blocks(texts: TextStore, vectors: VectorStore | None, split: Any) -> list[np.ndarray]:
    """The rows of each file: of a teacher, those that have a vector."""
    rows = np.arange(texts.size(split)) if vectors is None else vectors.rows(split)
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def _table(texts: TextStore, vectors: VectorStore | None, split: Any, rows: np.ndarray) -> pa.Table:
    records = list(texts.read(split, rows.tolist()))
    columns: dict[str, Any] = {"text": [r.text for r in records], "kind": [r.kind for r in records]}
    if vectors is not None:
        dtype = np.float16 if vectors.dtype == "float16" else np.float32
        flat = np.ascontiguousarray(vectors.read(split, rows), dtype).reshape(-1)
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.dim)
    return pa.table(columns)


def _named(marker: bytes) -> set[str]:
    """The files that an earlier upload's marker names."""
    content = parse_json(marker)
    files = content.get("files") if isinstance(content, dict) else None
    listed = {file for file in files if isinstance(file, str)} if isinstance(files, list) else set()
    return {*listed, "README.md", MARKER}


def _card(recipe: Recipe, texts: TextStore, stores: list[VectorStore]) -> str:
    sizes = {split: texts.size(split) for split in SPLITS}
    configs = [
        {
            "config_name": config,
            "data_files": [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in SPLITS if sizes[split]],
        }
        for config in ("texts", *(store.name for store in stores))
    ]
    data = DatasetCardData(
        language=list(recipe.export.language) or None,
        task_categories=["sentence-similarity", "feature-extraction"],
        tags=["embeddings", "distillation", "jasper_jax"],
        configs=configs,
    )
    counts = ", ".join(f"{size:,} {split.replace('_', ' ')}" for split, size in sizes.items())
    rows = [f"| {code_span(s.name)} | {s.dim} | {s.dtype} |" for s in stores]
    lines = [
        f"# Texts and teacher vectors of {markdown_text(recipe.name)}",
        "",
        f"The texts that a student was distilled on ({counts}), and its teachers' vectors of them, normalised, made by"
        " jasper_jax.",
        "",
        *(["| configuration | dimensions | stored as |", "| --- | ---: | --- |", *rows] if rows else []),
    ]
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"))
