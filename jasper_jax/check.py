"""``jasper check``: validate a recipe; print it, what each stage trains, the output dimensions, and the cost."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from jasper_jax.data.drawn import drawn_records
from jasper_jax.data.image_sources import check_image_sources
from jasper_jax.data.pair_sources import check_pairs
from jasper_jax.data.sources import check_sources
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.weights import check_params
from jasper_jax.evaluation.precisions import refuse_impossible
from jasper_jax.evaluation.text_tests import check_classification, check_judged, check_test
from jasper_jax.evaluation.wordings import read_wordings
from jasper_jax.export.asymmetric import documents_of
from jasper_jax.export.onnx_folder import refuse_without_packages
from jasper_jax.export.tokenizer import check_tokenizer, exported_as
from jasper_jax.parameters.patterns import trained_leaves
from jasper_jax.parameters.sharding import leaf_shards, mesh_axes
from jasper_jax.parameters.table import leaf_table
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.extras import missing_extras
from jasper_jax.recipe.load import dump_recipe
from jasper_jax.recipe.stages import ResolvedStage, Store, held_out, nested_heads, no_held_out_losses
from jasper_jax.run import Run
from jasper_jax.runtime.console import bold
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.tables import print_table
from jasper_jax.student.dimensions import cut_dimensions, default_dimension, providers
from jasper_jax.student.heads import HeadShape
from jasper_jax.student.spaces import teacher_spaces
from jasper_jax.student.start import check_start, make_student, make_tokenizer
from jasper_jax.student.student import Student
from jasper_jax.teachers.needed import needed_draws
from jasper_jax.teachers.torch_teacher import refuse_without_torch
from jasper_jax.teachers.vectors import DTYPES, store_bytes
from jasper_jax.training.partition import make_partition
from jasper_jax.training.run_mesh import mesh_needs, mesh_sizes
from jasper_jax.training.stage_kind import make_kind
from jasper_jax.training.teaching import Teaching


def report(run: Run, out: Console) -> None:
    """Validate the recipe (see :func:`validate`) and print all that can be known without running it."""
    student, teacher_dim = validate(run)
    out.print(dump_recipe(run.recipe))
    tables = [_stages(run, student, teacher_dim), _dimensions(run, student), _teachers(run), _cost(run, student)]
    for table in tables:
        print_table(table, out)
    if (mesh := _mesh(run, student)) is not None:
        print_table(leaf_table(leaf_shards(flatten(student.shapes()), mesh)), out)
    note = "not on this machine: sizes are the published ones, weights and tokenizer were not validated"
    lines = [f"{name}: {note}" for name in _described(run)] + missing_extras(run.recipe)
    if unused := [name for name in run.recipe.heads if name not in _trained(run, student)]:
        lines.append(f"No stage names {', '.join(unused)}: neither trained nor exported.")
    for stage in run.stages:
        items = held_out(run.recipe, stage.kind.store)
        if items is not None and stage.batch_size > items:
            lines.append(f"{stage.name}: {no_held_out_losses(stage, items)}")
    for line in lines + advice_for_few_texts(run):
        out.print(line)


def validate(run: Run) -> tuple[Student, int | None]:
    """Find every error that would stop the run later; returns the student and the teachers' dimension.

    Takes a second or two and writes nothing. With ``describe`` it needs no optional package.

    Raises:
      UserError: a source, model or test does not exist; weights do not fit their config; a pattern matches nothing;
        dimensions do not fit, or two heads provide the same.
    """
    recipe = run.recipe
    if recipe.texts is not None:
        if not (run.data.text_folder / "manifest.json").is_file():
            check_sources(recipe.texts)
            for source in recipe.texts.pairs:
                check_pairs(source)
        if recipe.texts.count is not None:
            refuse_large_batches(run.stages, recipe.texts.count, "texts of texts.count", "texts")
    if recipe.images is not None and run.trains_on_images and not (run.data.pair_folder / "manifest.json").is_file():
        check_image_sources(recipe.images, libraries=not run.describe)
    for test in recipe.evaluation.retrieval:
        check_test(test)
    for judged in recipe.evaluation.similarity:
        if not isinstance(judged, str):
            check_judged(judged)
    for labels in recipe.evaluation.classification:
        check_classification(labels)
    read_wordings(recipe.evaluation.instructions)
    refuse_impossible(recipe, 0 if recipe.texts is None else recipe.texts.held_out)
    teacher_dim = run.teacher_dim
    for teacher in run.teachers if run.needs_vectors else ():
        folder = teacher.source
        if folder is not None and teacher.settings.backend == "torch":
            if not run.describe:
                refuse_without_torch(teacher.settings)
        elif isinstance(folder, ModelFolder) and not folder.described:
            check_params(folder.encoder_path, encoder_from_config(folder.hf_config, str(folder.path)))
            teacher.check_tokenizer()
    student = make_student(recipe, teacher_dim, run.student)
    if recipe.export.onnx:
        if student.vision_model is not None:
            raise UserError("export.onnx: a student of texts and images is not written as ONNX; remove it")
        if not run.describe:
            refuse_without_packages()
    check_start(recipe, student, run.student)
    if not run.student.described:
        make_tokenizer(student, run.student, min(recipe.training.max_length or student.max_length, student.max_length))
        model_type, extra = exported_as(student)
        check_tokenizer(make_tokenizer(student, run.student), run.student.tokenizer_path, model_type, extra)
    params = student.shapes()
    if (mesh := _mesh(run, student)) is not None:
        leaf_shards(flatten(params), mesh)  # raises UserError if a leaf does not divide
    for stage in run.stages:
        make_partition(stage.train, make_kind(recipe, stage, student).active(params), f"stages[{stage.index}].train")
    _refuse_untrained(run, student, params)
    trained = _trained(run, student)
    default_dimension(providers(trained, recipe.export.dims), recipe.export.dim)
    spaces = teacher_spaces(recipe, trained, run.vectors.dims)
    documents_of(recipe.export, spaces, run.teachers, images=student.vision_model is not None)
    return student, teacher_dim


def refuse_large_batches(stages: Sequence[ResolvedStage], number: int, what: str, store: Store) -> None:
    """UserError if a batch of a stage on ``store`` has more than ``number`` items."""
    for stage in stages:
        if stage.learns_from(store) and stage.batch_size > number:
            raise UserError(
                f"stages[{stage.index}].batch_size: {stage.batch_size} exceeds the {number:,} {what};"
                f" lower it or add {stage.kind.unit}"
            )


def _refuse_untrained(run: Run, student: Student, params: dict) -> None:
    """UserError for random parameters that no stage trains."""
    recipe = run.recipe
    used = {h for s in run.stages for h in s.heads if recipe.heads[h].init == "random"}
    prefixes = [f"heads/{head}/" for head in sorted(used)] + (["encoder/"] if recipe.student.config else [])
    if recipe.student.vision is not None and run.trains_on_images:
        prefixes += ["vision/"] if recipe.student.vision.weights == "random" else []
    covered: dict[str, int] = {}
    for stage in run.stages:
        leaves = flatten(make_kind(recipe, stage, student).active(params))
        active = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
        for name, start in trained_leaves(stage.train, active, f"stages[{stage.index}].train").items():
            covered[name] = min(start, covered.get(name, start))
    random = [name for name in flatten(params) if name.startswith(tuple(prefixes)) and covered.get(name, 1)]
    if random:
        raise UserError(
            f"stages: no stage trains {', '.join(random[:3])}{f' and {len(random) - 3} more' if random[3:] else ''},"
            f" which start at random; add a pattern to a stage's train, e.g. {random[0].rsplit('/', 1)[0]}/**"
        )


def served_dims(run: Run) -> list[int]:
    """The dimensions that an export can have, the largest first."""
    student = make_student(run.recipe, run.teacher_dim, run.student)
    return list(providers(_trained(run, student), run.recipe.export.dims))


def _trained(run: Run, student: Student) -> dict[str, HeadShape]:
    """The heads that some stage uses."""
    return {n: h for n, h in student.heads.items() if any(n in s.heads for s in run.stages)}


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
    served = providers(_trained(run, student), run.recipe.export.dims)
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
    count, shard_rows = _needed_count(run), recipe.texts.shard_rows if recipe.texts else 1024
    rows = count or 1_000_000
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
    count = _text_count(run)
    if recipe.texts is not None:
        table.add_row("texts (training + held out)", "all the sources give" if count is None else f"{count:,}")
        if run.needs_vectors:
            needed = _needed_count(run)
            unknown = "those that the stages draw"
            table.add_row("texts embedded (drawn + held out)", unknown if needed is None else f"{needed:,}")
        if sources := recipe.texts.pairs:
            limits = [source.limit for source in sources if source.limit is not None]
            known = len(limits) == len(sources)
            given = f"at most {sum(limits):,}" if known else "all the sources give"
            table.add_row("labelled pairs (two texts each)", given)
        table.add_row("texts seen in training", f"{_seen(run, 'texts', 'pairs'):,}")
    if run.trains_on_images:
        table.add_row("images seen in training", f"{_seen(run, 'images'):,}")
    params = _parameters(student.shapes())
    table.add_row("a checkpoint, at most (parameters + AdamW)", decimal(3 * 4 * params))
    width = {"float32": 4, "float16": 2, "bfloat16": 2}[recipe.export.dtype]
    table.add_row("the exported model", f"about {decimal(width * params)}")
    return table


def _seen(run: Run, *stores: Store) -> int:
    """Texts or images of these stores that the stages encode; repeated ones count again."""
    return sum(stage.steps * stage.width for stage in run.stages if stage.kind.store in stores)


FEW_TEXTS = 20_000
"""Below this, what a recipe for many texts does is worth a line."""


def advice_for_few_texts(run: Run) -> list[str]:
    """What a recipe for many texts does with few; nothing where their number is not known before the store is built."""
    texts, count = run.recipe.texts, _text_count(run)
    if texts is None or not texts.sources or count is None or count > FEW_TEXTS:
        return []
    lines, augment = [], texts.augment
    if augment.split_share > 0.5:
        lines.append(
            f"texts.augment.split_share: {augment.split_share:.0%} of the passages of several sentences become pieces"
            f" of {augment.min_sentences} to {augment.max_sentences} sentences; set 0 to train on passages as they are."
        )
    repeats = _seen(run, "texts") / max(1, count - texts.held_out)
    if repeats > 5:
        lines.append(
            f"Each of the {count - texts.held_out:,} texts is drawn {repeats:.0f} times; compare 'held out' at the"
            f" start and end of each stage, and lower steps or learning_rate where it rises."
        )
    return lines


def _text_count(run: Run) -> int | None:
    """Texts for training and held out; None if the recipe takes all texts of a store that is not built."""
    texts = run.recipe.texts
    if texts is not None and (run.data.text_folder / "manifest.json").is_file():
        store = TextStore.open(run.data.text_folder)
        return store.size("train") + store.size("held_out")
    return None if texts is None or texts.count is None else texts.count + texts.held_out


def _needed_count(run: Run) -> int | None:
    """Texts whose teachers' vectors are needed; None if the recipe takes all texts."""
    texts = run.recipe.texts
    if texts is None or texts.count is None:
        return None
    draws = needed_draws(run.recipe, texts.count)
    drawn = texts.count if draws is None else int(drawn_records(draws, texts.count).sum())
    return drawn + texts.held_out


def _mesh(run: Run, student: Student) -> AbstractMesh | None:
    """The mesh of the recipe, whose devices need not exist; None for auto."""
    wanted = run.recipe.mesh
    if wanted == "auto":
        return None
    devices = wanted.data * wanted.fsdp * wanted.tensor
    axes = mesh_axes(mesh_sizes(wanted, devices, run.stages, mesh_needs(student, run.vectors)))
    return AbstractMesh(tuple(axes.values()), tuple(axes))


def _parameters(tree: dict) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in flatten(tree).values())


def _table(title: str, *headers: str, right: Sequence[int]) -> Table:
    """An empty table; ``right``: the columns aligned to the right."""
    table = Table(*headers, title=title)
    for column in right:
        table.columns[column].justify = "right"
    return table
