"""``jasper encode``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_array
from jasper_jax.runtime.outputs import refuse_output
from jasper_jax.runtime.progress import say
from jasper_jax.runtime.tables import OUT
from jasper_jax.runtime.text_files import content_suffix, lines_of, numbered_lines


def encode_file(model: str, source: Path, output: Path, kind: str, dim: int | None, precision: str) -> None:
    """``jasper encode``: one text per line, or the ``text`` of each JSONL object, to a ``.npy`` of vectors."""
    from jasper_jax.assets.models import resolve_model
    from jasper_jax.checkpoints.export_marker import refuse_damaged
    from jasper_jax.embedder import Embedder
    from jasper_jax.encoders.prompts import KINDS
    from jasper_jax.encoders.quantization import quantizer
    from jasper_jax.runtime.program_cache import cache_programs

    if kind not in KINDS:
        raise UserError(f"--kind {kind}: allowed are {' and '.join(KINDS)}")
    if output.suffix != ".npy":
        raise UserError(f"{output}: expected a file name that ends in .npy")
    if str(source) != "-" and not source.is_file():
        raise UserError(
            f"{source}: no such file; expected a text file with one text per line, JSONL, or - for standard input"
        )
    refuse_output(output, "a .npy file", [] if str(source) == "-" else [source])
    texts, kinds = _read_texts(source, kind)
    if not any(text.strip() for text in texts):
        raise UserError(f"{source}: holds no text; expected one text per line")
    if empty := sum(not text.strip() for text in texts):
        say(f"{source}: {empty:,} of {len(texts):,} lines are empty; their vectors are meaningless.")
    folder = resolve_model(model)
    refuse_damaged(folder)
    cache_programs()
    embedder = Embedder.load(folder)
    quantize = quantizer(precision, dim or embedder.default_dim, embedder.ranges)
    vectors = embedder.encode(texts, kind=kinds, dim=dim, show_progress=True)
    if embedder.truncated:
        limit = f"{embedder.max_length} tokens"
        say(f"{embedder.truncated:,} of {len(texts):,} texts are longer than {limit} and were truncated.")
    if bad := int(np.count_nonzero(~np.isfinite(vectors).all(axis=1))):
        raise UserError(f"{model}: {bad:,} of {len(vectors):,} vectors are not finite; its weights are damaged")
    write_array(output, quantize(vectors))
    OUT.print(f"{output}: {len(vectors):,} {precision} vectors of {vectors.shape[1]} dimensions")


def _read_texts(source: Path, kind: str) -> tuple[list[str], list[str]]:
    """The texts of a file and the kind of each: ``kind``, unless an object of a JSONL file says its own."""
    from jasper_jax.data.rows import jsonl_rows, strings
    from jasper_jax.encoders.prompts import KINDS

    if str(source) == "-":
        texts = lines_of(sys.stdin.buffer.read(), "standard input")
    elif content_suffix(source) != ".jsonl":
        texts = [line for _, line in numbered_lines(source)]
    else:
        texts, kinds = [], []
        for row in jsonl_rows(source):
            given = strings(row.values["text"], "text", row.where) if "text" in row.values else []
            if len(given) != 1 or row.values.get("kind", kind) not in KINDS:
                raise UserError(
                    f'{row.where}: expected {{"text": "..."}}, with "kind": "query" or "passage" if it differs from'
                    f" --kind; the keys are {', '.join(map(str, row.values)) or 'none'}"
                )
            texts += given
            kinds.append(row.values.get("kind", kind))
        return texts, kinds
    return texts, [kind] * len(texts)
