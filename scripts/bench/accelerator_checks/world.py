"""A recipe on generated texts, with a small teacher and a student of random weights, in the scratch folder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from accelerator_checks.check import REPOSITORY, scratch_folder

STEPS = {"full": 50, "tiny": 3}
BATCH = {"full": 128, "tiny": 16}
LENGTH = {"full": 512, "tiny": 64}


def recipe_file(size: str, **changes: Any) -> Path:
    """A recipe of one stage that trains everything, with ``changes``; its run and stores are in the scratch folder."""
    place = scratch_folder() / f"world-{size}"
    if not (place / "texts.jsonl").is_file():
        # Apart and on the CPU: a check whose own children use the accelerator must not occupy it.
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "scripts" / "bench")])
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
        code = f"from accelerator_checks.world import build; build({str(place)!r}, {size!r})"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = {
        "model_type": "bert",
        "vocab_size": 100,
        "max_position_embeddings": LENGTH[size],
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 1,
        **(large if size == "full" else small),
    }
    tree: dict[str, Any] = {
        "name": "accelerator",
        "run_dir": str(place / "run"),
        "stores": str(place / "stores"),
        "texts": {"sources": [{"jsonl": str(place / "texts.jsonl")}], "held_out": BATCH[size], "shard_rows": 2048},
        "teachers": [{"name": "teacher", "model": str(place / "teacher")}],
        "student": {
            "config": config,
            "tokenizer": str(place / "teacher"),
            "max_length": LENGTH[size],
            "compute_dtype": "bfloat16" if size == "full" else "float32",
            "remat": "full" if size == "full" else "none",
        },
        "heads": {"fc1": {"dim": "teachers"}, "fc2": {"dim": 8}},
        "stages": [{"stage": 3, "steps": STEPS[size], "batch_size": BATCH[size], "learning_rate": 1e-5}],
        "training": {"shapes": 1, "save_every": 100000, "evaluate_every": None},
        **changes,
    }
    path = place / f"{Path(tree['run_dir']).name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def build(place: str, size: str) -> None:
    """Write the teacher and the texts: passages of up to about 3/4 of the student's length."""
    from tests.tiny import sentences, write_model

    folder = Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder / "teacher")
    pool, rng = sentences(2000), random.Random(0)
    number, most = (7000, 40) if size == "full" else (160, 4)
    passages = dict.fromkeys(" ".join(rng.sample(pool, rng.randint(1, most))) for _ in range(number))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in passages)
    (folder / "texts.tmp").write_text(lines)
    (folder / "texts.tmp").rename(folder / "texts.jsonl")  # complete or absent
