"""Export as a sentence-transformers folder in Stella's layout; of a student of images in Jasper's (``jasper_vl``).

``Transformer`` at the top, ``1_Pooling``, one ``2_Dense_{dim}`` for every head and nested dimension, and a
``Normalize``; one line of ``modules.json`` selects a Dense folder. The export is written under a temporary name,
reloaded and compared with the trained student, and only then renamed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.checkpoints.export_marker import (
    FORMAT,
    MADE_BY,
    MARKER,
    checksums,
    only_names,
    own_files,
    read_marker,
    refuse_damaged,
    write_marker,
)
from jasper_jax.checkpoints.run_folder import RunFolder
from jasper_jax.data.stores import DataStores
from jasper_jax.data.texts import TextStore
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.hf_config import read_hf_config
from jasper_jax.encoders.pooling import POOLING_KEYS
from jasper_jax.encoders.weights import save
from jasper_jax.evaluation.evaluation import from_json
from jasper_jax.export.asymmetric import Documents, documents_of, write_asymmetric
from jasper_jax.export.card_training import History
from jasper_jax.export.check import check_asymmetric, check_folder
from jasper_jax.export.dimensions import declare_dimensions, promised_dimensions
from jasper_jax.export.jasper_vl import write_jasper_vl
from jasper_jax.export.model import TrainedStudent, exported_prompts, write_dense, write_json
from jasper_jax.export.model_card import model_card
from jasper_jax.export.onnx_folder import add_onnx, refuse_without_packages
from jasper_jax.export.own_code import refuse_other_code
from jasper_jax.export.public import public_recipe
from jasper_jax.export.ranges import write_ranges
from jasper_jax.export.tokenizer import write_tokenizer
from jasper_jax.export.versions import module_types, refused_before_5_2, requirements, with_old_names
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import naming, refuse_blocked
from jasper_jax.runtime.paths import real_folder
from jasper_jax.student.dimensions import default_dimension, providers
from jasper_jax.student.ranges import calibration_texts
from jasper_jax.student.source import StudentSource
from jasper_jax.student.spaces import teacher_spaces
from jasper_jax.student.start import make_student, make_tokenizer
from jasper_jax.teachers.stores import TeacherVectors

MOST_COMPARED = 200
"""Held-out texts that both ONNX models encode."""


def export(run: RunFolder, source: StudentSource, teachers: TeacherVectors, output: Path) -> tuple[Path, str]:
    """Write the trained student of ``run`` to ``output``; returns the folder and one line on how it was checked.

    ``source``: the folders the student started from, whose weights are not read.

    Raises:
      UserError: training is not finished; ``output`` has other content; the reloaded folder's vectors differ.
    """
    from jasper_jax.checkpoints.checkpoint import abstract

    output = real_folder(output)
    refuse_foreign(output)
    settings = run.recipe.export
    if settings.onnx:
        refuse_without_packages()
    checkpoints = run.checkpoints()
    last = len(run.stages) - 1
    if not checkpoints.has(checkpoints.final(last)):
        raise UserError(f"{run.path}: {run.stages[last].name} is not finished; run jasper train first")
    student = make_student(run.recipe, teachers.dim, source)
    tokenizer = make_tokenizer(student, source)
    params = checkpoints.load(checkpoints.final(last), abstract(student.shapes()))
    heads = {name: head for name, head in student.heads.items() if any(name in s.heads for s in run.stages)}
    served = providers(heads, settings.dims)
    default = default_dimension(served, settings.dim)
    spaces = teacher_spaces(run.recipe, heads, teachers.dims)
    documents = documents_of(settings, spaces, teachers.teachers, images=student.vision_model is not None)
    trained = TrainedStudent(student, params, tokenizer, source.tokenizer_path, served, default, settings, spaces)

    output.parent.mkdir(parents=True, exist_ok=True)
    partial, _ = _beside(output)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        write_folder(partial, run, trained, documents)
        verdict = check_folder(partial, trained)
        if documents is not None:
            verdict += f"; {check_asymmetric(partial, trained, documents)}"
        if settings.onnx:
            verdict += f"; {add_onnx(partial, settings, _held_out(run))}"
        _replace(partial, output)
    except OSError as error:  # a failed write on a full disk names no file
        raise naming(error, Path(error.filename or partial)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # exists only after an error
    return output, verdict


def _held_out(run: RunFolder) -> list[str]:
    """Passages on which int8 is compared with float32: held-out texts; [] if there are too few."""
    store = TextStore.find(DataStores(run.recipe).text_folder)
    return [record.text for record in calibration_texts(store)][:MOST_COMPARED]


def is_exported(run: RunFolder, folder: Path) -> bool:
    """Whether ``folder`` is the undamaged export of ``run``'s recipe, without code of others."""
    try:
        refuse_damaged(folder)
        marker = read_marker(folder)
        refuse_other_code(folder)
    except (UserError, OSError, ValueError):
        return False
    return marker.get("recipe") == public_recipe(run.recipe)


def write_folder(folder: Path, run: RunFolder, trained: TrainedStudent, documents: Documents | None) -> None:
    """Write every file of the export. Nothing in it depends on time or place, so equal runs give equal bytes."""
    write = write_model if trained.student.vision_model is None else write_jasper_vl
    write(folder, trained)
    if documents is not None:
        write_asymmetric(folder, trained, documents, run.recipe.name)
    declare_dimensions(folder, promised_dimensions(trained, run.stages))
    write_ranges(folder, trained, DataStores(run.recipe).text_folder)
    scores = run.path / "evaluation.json"
    evaluation = from_json(scores) if scores.is_file() else None
    card = model_card(run.recipe, trained, evaluation, documents, History.of(run))
    (folder / "README.md").write_text(card, "utf-8")
    marker = {
        "format": FORMAT,
        "made_by": MADE_BY,
        "run": run.recipe.name,
        "dims": {str(dim): provider.head for dim, provider in trained.served.items()},
        "recipe": public_recipe(run.recipe),
        "sha256": checksums(folder),
    }
    write_marker(folder, marker)


def write_model(folder: Path, trained: TrainedStudent) -> None:
    """Model, tokenizer, steps and prompts of a student of texts."""
    student = trained.student
    encoder = student.encoder
    params = jax.tree.map(lambda x: jnp.asarray(x, trained.dtype), trained.params["encoder"])
    save(params, encoder, folder, _unused_pooler(encoder, trained.dtype))
    needs, config = requirements(encoder), read_hf_config(folder)
    write_json(folder / "config.json", with_old_names(refused_before_5_2(config) if needs else config))
    # transformers 4 refuses this name; where requirements are empty every version reads the folder.
    name = "TokenizersBackend" if needs else ""
    write_tokenizer(folder, trained.tokenizer, trained.source, encoder.family.model_type, name=name)
    for dim in trained.served:
        write_dense(folder / f"2_Dense_{dim}", trained.head(dim), trained.dtype)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), (f"2_Dense_{trained.default}", "Dense")]
    types = module_types(encoder)
    if trained.settings.normalize:
        modules.append(("3_Normalize", "Normalize"))
        write_json(folder / "3_Normalize" / "config.json", {})
    write_json(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": types[kind]} for i, (path, kind) in enumerate(modules)],
    )
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": student.max_length, "do_lower_case": False})
    modes = {key: mode in student.pooling.modes for key, mode in POOLING_KEYS.items()}
    width = student.encoder.hidden_size
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": exported_prompts(student.prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            **({"requirements": needs} if needs else {}),
        },
    )


def _unused_pooler(encoder: Encoder, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Zeros for the pooler that transformers makes for BERT's relatives and no vector depends on: without its weights,
    every load would print that they are missing."""
    if "pooler.*" not in encoder.family.ignored:
        return {}
    D = encoder.hidden_size
    return {"pooler.dense.weight": np.zeros((D, D), dtype), "pooler.dense.bias": np.zeros(D, dtype)}


def refuse_foreign(output: Path) -> None:
    """UserError if an export to ``output`` would delete files that its marker does not name, or is impossible."""
    remedy = "choose another with --output"
    refuse_blocked(output, remedy)
    if Path.cwd().is_relative_to(os.path.realpath(output)):
        raise UserError(f"{output}: this command runs in it, and an export replaces the whole folder; {remedy}")
    for leftover in _beside(output):  # of a killed export, to be deleted
        for path in _files(leftover):
            if not only_names([path.relative_to(leftover).as_posix().removesuffix(".writing")]):
                raise UserError(
                    f"{path}: no export wrote this, and a new one would delete it; move it away, or {remedy}"
                )
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; choose a folder with --output")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / MARKER).is_file():
        raise UserError(f"{output}: not empty and not an earlier export (no {MARKER}); {remedy}")
    own = own_files(read_record_bytes(output / MARKER))
    if foreign := next(
        (p for p in _files(output) if p.is_symlink() or p.relative_to(output).as_posix() not in own), None
    ):
        raise UserError(f"{foreign}: no export wrote this, and a new one would delete it; move it away, or {remedy}")


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]


def _beside(output: Path) -> tuple[Path, Path]:
    """Where an export is written, and where the one before it is until then."""
    return output.with_name(f".{output.name}.partial"), output.with_name(f".{output.name}.old")


def _replace(partial: Path, output: Path) -> None:
    """Replace ``output`` by the finished folder; at every moment one of the two is complete on disk."""
    _, old = _beside(output)
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)
