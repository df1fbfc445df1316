"""``jasper texts export``."""

from __future__ import annotations

import json
from pathlib import Path

from jasper_jax.recipe.config import Recipe
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_atomic
from jasper_jax.runtime.interrupt import stop_flag
from jasper_jax.runtime.outputs import refuse_output
from jasper_jax.runtime.tables import OUT


def export_texts(recipe: Recipe, output: Path, recipe_file: Path) -> None:
    """``jasper texts export``: every text that an imported teacher needs a vector of, as JSONL."""
    from jasper_jax.data.text import digest
    from jasper_jax.evaluation.text_tests import HELD_OUT, TextTests
    from jasper_jax.recipe.places import files_read
    from jasper_jax.run import Run

    refuse_output(output, "a .jsonl file", [recipe_file, *files_read(recipe)])
    if recipe.texts is None:
        raise UserError("texts: the recipe has none, so there is nothing to export")
    run = Run(recipe)
    with run.run_folder.alone("texts export"), stop_flag() as stop, stop.immediately():
        store = run.data.texts()
        tests = TextTests(recipe.evaluation, store)
    lines: dict[bytes, str] = {}

    def add(text: str, kind: str) -> None:
        row = json.dumps({"text": text, "kind": kind}, ensure_ascii=False)
        lines.setdefault(digest(text, kind), row)

    for shard in store.shards:
        for row in store.read_shard(shard):
            add(row.text, row.kind)
    own = len(lines)
    for name, (texts, kinds) in tests.lists.items():
        for text, kind in zip(texts, kinds) if name != HELD_OUT else ():
            add(text, kind)
    write_atomic(output, "".join(f"{line}\n" for line in lines.values()))
    more = f" and {len(lines) - own:,} more of the tests" if len(lines) > own else ""
    OUT.print(f"{output}: {own:,} texts of {run.data.text_folder}{more}")
