"""What is refused before anything is done: a recipe with all that it names."""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import AbstractMesh

from jasper_jax.data.image_sources import check_image_sources
from jasper_jax.data.pair_sources import check_pairs
from jasper_jax.data.sources import check_sources
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
from jasper_jax.parameters.sharding import AXES
from jasper_jax.parameters.trees import flatten
from jasper_jax.recipe.stages import ResolvedStage, Store
from jasper_jax.run import Run
from jasper_jax.runtime.errors import UserError
from jasper_jax.student.dimensions import default_dimension, providers
from jasper_jax.student.heads import HeadShape
from jasper_jax.student.spaces import teacher_spaces
from jasper_jax.student.start import check_start, make_student, make_tokenizer
from jasper_jax.student.student import Student
from jasper_jax.teachers.torch_teacher import refuse_without_torch
from jasper_jax.training.partition import make_partition
from jasper_jax.training.run_mesh import mesh_needs, mesh_sizes
from jasper_jax.training.stage_kind import make_kind


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
    if recipe.export.onnx and not run.describe:
        refuse_without_packages()
    check_start(recipe, student, run.student)
    if not run.student.described:
        make_tokenizer(student, run.student, min(recipe.training.max_length or student.max_length, student.max_length))
        model_type, extra = exported_as(student)
        check_tokenizer(make_tokenizer(student, run.student), run.student.tokenizer_path, model_type, extra)
    params = student.shapes()
    recipe_mesh(run, student)  # raises UserError if a batch or a leaf does not divide
    for stage in run.stages:
        make_partition(stage.train, make_kind(recipe, stage, student).active(params), f"stages[{stage.index}].train")
    _refuse_untrained(run, student, params)
    trained = trained_heads(run, student)
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
    return list(providers(trained_heads(run, student), run.recipe.export.dims))


def trained_heads(run: Run, student: Student) -> dict[str, HeadShape]:
    """The heads that some stage uses."""
    return {n: h for n, h in student.heads.items() if any(n in s.heads for s in run.stages)}


def recipe_mesh(run: Run, student: Student) -> AbstractMesh | None:
    """The mesh of the recipe, whose devices need not exist; None for auto."""
    wanted = run.recipe.mesh
    if wanted == "auto":
        return None
    devices = wanted.data * wanted.fsdp * wanted.tensor
    return AbstractMesh(mesh_sizes(wanted, devices, run.stages, mesh_needs(student, run.vectors)), AXES)
