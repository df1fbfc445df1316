"""Loads a folder in sentence-transformers and encodes inputs at every dimension, in a separate process.

``python -m jasper_jax.export.reload_in_torch job.json``; this package imports torch only here and for torch teachers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jasper_jax.encoders.prompts import KINDS
from jasper_jax.teachers.torch_settings import no_code


def main(job_file: str) -> None:
    """Encode the job's inputs, as queries and as passages, at each of its dimensions; write them to its ``out``."""
    import numpy as np

    job = json.loads(Path(job_file).read_text("utf-8"))
    source = Path(job["folder"])
    router = (source / "router_config.json").is_file()
    if router:
        models = _by_router(source, job["dims"])
    elif (source / "sentence_jasper_vl.py").is_file():
        models = _with_images(source, job["dims"], Path(job_file).parent)
    else:
        models = _texts(source, job["dims"])
    vectors: dict[str, Any] = {}
    for dim, model in models:
        encoders = {"query": model.encode_query, "passage": model.encode_document} if router else {}
        for kind in KINDS:
            encode = encoders.get(kind, partial(model.encode, prompt_name=kind))
            vectors[f"{kind}/{dim}"] = encode(job["inputs"], show_progress_bar=False)
    np.savez(job["out"], allow_pickle=False, **vectors)


def _by_router(source: Path, dims: list[int]) -> Iterator[tuple[int, Any]]:
    from sentence_transformers import SentenceTransformer

    (dim,) = dims
    yield dim, SentenceTransformer(str(source), device="cpu").float()


def _with_images(source: Path, dims: list[int], image_root: Path) -> Iterator[tuple[int, Any]]:
    from sentence_transformers import SentenceTransformer

    # This package wrote the code in the folder, so it can be trusted.
    options = {"device": "cpu", "trust_remote_code": True, "processor_kwargs": {"image_root": str(image_root)}}
    model: Any = SentenceTransformer(str(source), **options).float()
    for dim in dims:
        model[0].model.config.vector_dim = dim
        yield dim, model


def _texts(source: Path, dims: list[int]) -> Iterator[tuple[int, Any]]:
    """Selects each dimension as a user does, by naming another ``2_Dense`` folder in modules.json."""
    from sentence_transformers import SentenceTransformer

    modules = json.loads((source / "modules.json").read_text("utf-8"))
    for dim in dims:
        with tempfile.TemporaryDirectory() as folder:
            for entry in source.iterdir():
                if entry.name != "modules.json":
                    (Path(folder) / entry.name).symlink_to(entry)
            for module in modules:
                if module["path"].startswith("2_Dense_"):
                    module["path"] = f"2_Dense_{dim}"
            (Path(folder) / "modules.json").write_text(json.dumps(modules), "utf-8")
            yield dim, SentenceTransformer(folder, device="cpu").float()


if __name__ == "__main__":
    with no_code():
        main(sys.argv[1])
