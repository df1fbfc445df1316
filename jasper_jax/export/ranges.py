"""``vector_ranges.json``: the ranges of an export's int8 vectors."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.quantization import RANGES
from jasper_jax.export.model import TrainedStudent, write_json
from jasper_jax.runtime.progress import say
from jasper_jax.student.ranges import LEAST_TEXTS, calibration_texts, head_ranges
from jasper_jax.student.start import student_embedder


def write_ranges(folder: Path, trained: TrainedStudent, text_folder: Path) -> None:
    """Write the ranges of every exported dimension, measured on held-out texts of the text store in ``text_folder``.

    Without a store or with too few held-out texts there is no such file, and a line says so: the folder then gives
    float32 and binary vectors.
    """
    texts = calibration_texts(TextStore.find(text_folder))
    if not texts:
        say(
            f"export: no ranges for int8 vectors, since {text_folder} has fewer than {LEAST_TEXTS} held-out texts"
            " (texts.held_out); float32 and binary need none."
        )
        return
    embedder = student_embedder(trained.student, trained.params, trained.tokenizer)
    pooled = embedder.pooled([row.text for row in texts], [row.kind for row in texts])
    ranges = head_ranges([(dim, trained.head(dim)) for dim in trained.served], pooled)
    # Each number in as few digits as give the same float32.
    lists = {str(dim): [[float(str(x)) for x in row] for row in bounds] for dim, bounds in ranges.items()}
    write_json(folder / RANGES, {"texts": len(texts), "ranges": lists})
