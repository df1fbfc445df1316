"""``jasper check``: validate a recipe; print it, what each stage trains, the output dimensions, and the cost."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from jasper_jax.commands.amounts import UNKNOWN, advice_for_few_texts, needed_count, seen, text_count
from jasper_jax.commands.validation import recipe_mesh, trained_heads, validate
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.parameters.sharding import leaf_shards
from jasper_jax.parameters.table import leaf_table
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.extras import missing_extras
from jasper_jax.recipe.load import dump_recipe
from jasper_jax.recipe.stage_data import held_out, no_held_out_losses
from jasper_jax.recipe.stages import nested_heads
from jasper_jax.run import Run
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.tables import OUT, print_table
from jasper_jax.student.dimensions import cut_dimensions, default_dimension, providers
from jasper_jax.student.student import Student
from jasper_jax.teachers.vectors import DTYPES, store_bytes
from jasper_jax.training.partition import make_partition
from jasper_jax.training.stage_kind import make_kind
from jasper_jax.training.teaching import Teaching


def check_recipe(recipe: Recipe) -> None:
    """``jasper check``."""
    report(Run(recipe, describe=True), OUT)


def report(run: Run, out: Console) -> None:
    """Validate the recipe (see :func:`validate`) and print all that can be known without running it."""
    student, teacher_dim = validate(run)
    out.print(dump_recipe(run.recipe))
    tables = [_stages(run, student, teacher_dim), _dimensions(run, student), _teachers(run), _cost(run, student)]
    for table in tables:
        print_table(table, out)
    if (mesh := recipe_mesh(run, student)) is not None:
        print_table(leaf_table(leaf_shards(flatten(student.shapes()), mesh)), out)
    note = "not on this machine: sizes are the published ones, weights and tokenizer were not validated"
    lines = [f"{name}: {note}" for name in _described(run)] + missing_extras(run.recipe)
    if unused := [name for name in run.recipe.heads if name not in trained_heads(run, student)]:
        lines.append(f"No stage names {', '.join(unused)}: neither trained nor exported.")
    for stage in run.stages:
        items = held_out(run.recipe, stage.kind.store)
        if items is not None and stage.batch_size > items:
            lines.append(f"{stage.name}: {no_held_out_losses(stage, items)}")
    for line in lines + advice_for_few_texts(run):
        out.print(line)


def _stages(run: Run, student: Student, teacher_dim: int | None) -> Table:
    """Per stage: the trained leaves and parameters, heads and losses, steps and texts."""
    headers = ("stage", "trains", "leaves", "parameters", "share", "heads and losses", "steps", "texts")
    table = _table("Stages", *headers, right=(2, 3, 4, 6, 7))
    params = student.shapes()
    total = _parameters(params)
    teaching = Teaching({"teachers": teacher_dim} if teacher_dim else {})
    for stage in run.stages:
        kind = make_kind(run.recipe, stage, student)
        active = kind.active(params)
        partition = make_partition(stage.train, active, f"stages[{stage.index}].train")
        trained, _ = jax.eval_shape(partition.split, active)
        count = _parameters(trained)
        targets = {head: stage.kind.taught_by or run.recipe.heads[head].target for head in stage.heads}
        losses = kind.head_losses(teaching)
        table.add_row(
            stage.name,
            "\n".join(stage.train),
            f"{len(trained)}",
            f"{count:,}",
            f"{count / total:.1%}",
            "\n".join(f"{head} <- {target}: {', '.join(losses[head].terms)}" for head, target in targets.items()),
            f"{stage.steps:,}",
            f"{stage.steps * stage.batch_size:,}",
        )
    table.caption = f"student: {total:,} parameters, {student.encoder.num_layers} layers, width {student.width}"
    if (vision_model := student.vision_model) is not None:
        vision = _parameters(params["vision"])
        table.caption += (
            f"; vision: {vision:,} of them, {vision_model.encoder.num_layers} layers, {vision_model.encoder.image_size}"
            f" px, {vision_model.encoder.num_tokens} tokens pooled to {vision_model.tokens}"
        )
    return table


def _dimensions(run: Run, student: Student) -> Table:
    """Which head makes each dimension, and how a server of the exported folder gives it."""
    table = _table("Output dimensions", "dimension", "made by", "hidden by it", "in a server", right=(0,))
    served = providers(trained_heads(run, student), run.recipe.export.dims)
    default, nested = default_dimension(served, run.recipe.export.dim), nested_heads(run.stages)
    cut = cut_dimensions(served, default, nested)
    other = "2_Dense_{} in modules.json" if student.vision_model is None else "vector_dim: {} in config.json"
    for dim, provider in served.items():
        made = provider.head + (f" (first {dim} components)" if provider.nested else "")
        how = "default" if dim == default else f"dimensions: {dim}" if dim in cut else other.format(dim)
        table.add_row(str(dim), made, ", ".join(provider.hidden), how)
    best = max(served, key=lambda dim: len(cut_dimensions(served, dim, nested)))
    if len(more := cut_dimensions(served, best, nested)) > len(cut):
        table.caption = f"export.dim={best}: a server of one folder would give {', '.join(map(str, more))}"
    return table


def _described(run: Run) -> list[str]:
    """The models that are not on this machine, whose published sizes are used."""
    sources = [teacher.source for teacher in run.teachers] if run.needs_vectors else []
    folders = [source for source in (*sources, run.student.folder) if isinstance(source, ModelFolder)]
    names = [str(folder.path) for folder in folders if folder.described]
    settings, vision = run.recipe.student.vision, run.student.vision
    unseen = [settings.model] if settings and vision and vision.path is None else []
    return list(dict.fromkeys([*names, *unseen]))


def _teachers(run: Run) -> Table:
    """Per teacher: its parameters, its dimension, and the size of its vectors in each dtype."""
    recipe = run.recipe
    count, shard_rows = needed_count(run), recipe.texts.shard_rows if recipe.texts else 1024
    rows = count or UNKNOWN
    title = f"Teachers; vectors of {rows / 1e6:,.3g} million texts"
    table = _table(title, "teacher", "parameters", "dimensions", "mode", *DTYPES, right=(1, 2, 4, 5, 6))
    for teacher in run.teachers if run.needs_vectors else ():
        folder, dim, settings = teacher.source, teacher.dim, teacher.settings
        parameters = "imported" if folder is None else "in PyTorch"
        if isinstance(folder, ModelFolder) and settings.backend != "torch":
            shapes = encoder_from_config(folder.hf_config, str(folder.path)).shapes().values()
            parameters = f"{sum(int(np.prod(shape)) for shape in shapes):,}"
        sizes = {dtype: decimal(store_bytes(rows, dim, dtype, shard_rows)) for dtype in DTYPES}
        bolded = [bold(size) if dtype == settings.dtype else size for dtype, size in sizes.items()]
        cells = ["-"] * len(DTYPES) if settings.mode == "online" else bolded
        table.add_row(settings.name, parameters, f"{dim:,}", settings.mode, *cells)
    if len(recipe.teachers) > 1 and run.needs_vectors:
        table.add_row("joined", "", f"{run.teacher_dim:,}", "", "", "", "")
    return table


def _cost(run: Run, student: Student) -> Table:
    """Numbers of texts and images, and sizes on disk."""
    recipe = run.recipe
    table = _table("Cost", "what", "amount", right=(1,))
    count = text_count(run)
    if recipe.texts is not None:
        table.add_row("texts (training + held out)", "all the sources give" if count is None else f"{count:,}")
        if run.needs_vectors:
            needed = needed_count(run)
            unknown = "those that the stages draw"
            table.add_row("texts embedded (drawn + held out)", unknown if needed is None else f"{needed:,}")
        if sources := recipe.texts.pairs:
            limits = [source.limit for source in sources if source.limit is not None]
            known = len(limits) == len(sources)
            given = f"at most {sum(limits):,}" if known else "all the sources give"
            table.add_row("labelled pairs (two texts each)", given)
        table.add_row("texts seen in training", f"{seen(run, 'texts', 'pairs'):,}")
    if run.trains_on_images:
        table.add_row("images seen in training", f"{seen(run, 'images'):,}")
    params = _parameters(student.shapes())
    table.add_row("a checkpoint, at most (parameters + AdamW)", decimal(3 * 4 * params))
    width = {"float32": 4, "float16": 2, "bfloat16": 2}[recipe.export.dtype]
    table.add_row("the exported model", f"about {decimal(width * params)}")
    return table


def _parameters(tree: dict) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())


def _table(title: str, *headers: str, right: Sequence[int]) -> Table:
    """An empty table; ``right``: the columns aligned to the right."""
    table = Table(*headers, title=title)
    for column in right:
        table.columns[column].justify = "right"
    return table
