"""Run as a process of its own: load a folder in sentence-transformers and encode inputs at every dimension.

``python -m jasper_jax.export.reload_in_torch job.json``; the only module of the package that imports torch.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from jasper_jax.encoders.prompts import KINDS


def main(job_file: str) -> None:
    """Encode the job's inputs, as queries and as passages, at each of its dimensions; write them to its ``out``."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    job = json.loads(Path(job_file).read_text())
    source = Path(job["folder"])
    vectors: dict[str, np.ndarray] = {}
    if (source / "sentence_jasper_vl.py").is_file():
        # Code that this package wrote there, not that of a stranger.
        model = SentenceTransformer(str(source), device="cpu", trust_remote_code=True).float()
        module: Any = model[0]
        for dim in job["dims"]:
            module.model.config.vector_dim = dim
            for kind in KINDS:
                vectors[f"{kind}/{dim}"] = model.encode(job["inputs"], prompt_name=kind, show_progress_bar=False)
        np.savez(job["out"], allow_pickle=False, **vectors)
        return
    for dim in job["dims"]:
        with tempfile.TemporaryDirectory() as scratch:
            # What a user does to change the dimension: point modules.json at another 2_Dense folder.
            folder = Path(scratch) / "model"
            folder.mkdir()
            for entry in source.iterdir():
                if entry.name != "modules.json":
                    (folder / entry.name).symlink_to(entry)
            text = (source / "modules.json").read_text()
            modules = json.loads(text)
            for module in modules:
                if module["path"].startswith("2_Dense_"):
                    module["path"] = f"2_Dense_{dim}"
            (folder / "modules.json").write_text(json.dumps(modules))
            model = SentenceTransformer(str(folder), device="cpu").float()
            for kind in KINDS:
                vectors[f"{kind}/{dim}"] = model.encode(job["inputs"], prompt_name=kind, show_progress_bar=False)
            del model
            shutil.rmtree(folder, ignore_errors=True)
    np.savez(job["out"], allow_pickle=False, **vectors)


if __name__ == "__main__":
    main(sys.argv[1])
