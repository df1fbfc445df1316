"""``asymmetric/`` in an export: a sentence-transformers Router that embeds queries with the student and documents with
the teacher, so that one folder makes an index and searches it.

Its ``query_*`` modules are the student's with the part of its head that is in the teacher's space; the ``document_*``
modules are copied from the teacher's folder. Both end with Normalize. Router is in sentence-transformers from 5.0 on.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jasper_jax.encoders.hf_config import read_json, to_publish
from jasper_jax.encoders.model_folder import ModelFolder, read_settings
from jasper_jax.encoders.pooling import POOLING_KEYS
from jasper_jax.export.model import TrainedStudent, write_dense, write_json
from jasper_jax.export.public import public_name
from jasper_jax.export.versions import module_types, requirements
from jasper_jax.recipe.config import Export, Recipe, Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.inside import file_inside, folder_inside
from jasper_jax.runtime.markdown import code_span
from jasper_jax.student.spaces import Space
from jasper_jax.teachers.models import TeacherModel
from jasper_jax.teachers.torch_settings import MODULE_TYPE
from jasper_jax.teachers.vectors import scales

FOLDER = "asymmetric"
_TRANSFORMER = re.compile(
    r"(config|sentence_\w+_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|(vocab|merges)\.txt|.*\.model|.*\.jinja|model.*\.safetensors|model\.safetensors\.index\.json"
)
"""Files of a Transformer module, whose folder often is that of the whole model."""
_OTHERS = re.compile(
    r"(\w*config|tokenizer|vocab)\.json|vocab\.txt|model.*\.safetensors|model\.safetensors\.index\.json"
)
"""Files of any other module, whose folder may be anything in the model's: ``.git`` has addresses with tokens."""
_REWRITTEN = re.compile(r"\w*config\.json")
"""Settings, from which names of code and of places are left out."""


@dataclass(frozen=True)
class Documents:
    """The teacher that embeds documents, and the student's space in which its queries find them."""

    teacher: TeacherModel
    space: Space


def documents_of(
    settings: Export, spaces: Sequence[Space], teachers: Sequence[TeacherModel], *, images: bool
) -> Documents | None:
    """What ``export.asymmetric`` asks for; None if nothing. ``spaces``: of the trained heads; ``images``: whether the
    student sees images.

    Raises:
      UserError: no trained head is in a teacher's space; several teachers and none is named; the teacher has no model.
    """
    key, asked = "export.asymmetric", settings.asymmetric
    if asked is False:
        return None
    if images:
        raise UserError(f"{key}: the student of images needs its own code, which a Router does not load; remove it")
    if not spaces:
        raise UserError(
            f"{key}: no trained head copies the teachers' own vectors; give a stage a head with dim: teachers"
        )
    named = {teacher.name: teacher for teacher in teachers}
    if asked is True and len(named) > 1:
        raise UserError(
            f"{key}: documents need one model, the recipe has the teachers {', '.join(named)}; name one, e.g."
            f" {key}={next(iter(named))}"
        )
    name = next(iter(named)) if asked is True else str(asked)
    if name not in named:
        raise UserError(f"{key}: {name!r} is not a teacher; expected true, false or one of {', '.join(named)}")
    if named[name].settings.model is None:
        raise UserError(
            f"{key}: the vectors of teacher {name} are imported, so there is no model for documents; remove it (the"
            f" model card says in which space queries answer)"
        )
    return Documents(named[name], next(space for space in spaces if space.teachers == (name,)))


def write_asymmetric(export: Path, trained: TrainedStudent, documents: Documents, name: str) -> None:
    """Write the Router into ``export``, whose student is written; ``name``: of the run."""
    folder = export / FOLDER
    queries = _queries(export, folder, trained, documents.space)
    routes = {"query": queries, "document": copy_documents(folder, documents.teacher)}
    types = module_types(trained.student.encoder)
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": types["Router"]}])
    write_json(
        folder / "router_config.json",
        {
            "types": {module: kind for modules in routes.values() for module, kind in modules.items()},
            "structure": {route: list(modules) for route, modules in routes.items()},
            # Without a task it is not known which model is meant, and a guess would be wrong for half of all texts.
            "parameters": {"default_route": None, "allow_empty_key": False},
        },
    )
    prompts = {"query": trained.student.prompts["query"], "document": documents.teacher.spec.prompts["passage"]}
    needs = requirements(trained.student.encoder)
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            **({"requirements": needs} if needs else {}),
        },
    )
    (folder / "README.md").write_text(_card(name, documents), "utf-8")


def _queries(export: Path, folder: Path, trained: TrainedStudent, space: Space) -> dict[str, str]:
    """Write the student's modules; names -> types."""
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    types = module_types(trained.student.encoder)
    _copy(export, folder / "query_0_Transformer", _TRANSFORMER)
    _copy(export / "1_Pooling", folder / "query_1_Pooling", _OTHERS)
    write_dense(folder / "query_2_Dense", space.of_head(trained.params["heads"][space.head]), trained.dtype)
    write_json(folder / "query_3_Normalize" / "config.json", {})
    return {f"query_{i}_{kind}": types[kind] for i, kind in enumerate(kinds)}


def copy_documents(folder: Path, teacher: TeacherModel) -> dict[str, str]:
    """Copy the teacher's modules into ``folder``, as ``document_0_Transformer`` and so on; names -> types.

    Raises:
      UserError: a module or a file to be copied is outside the teacher's folder, or a module is code by name.
    """
    path, types = teacher.path, {}
    for i, (source, kind) in enumerate(_modules(path, teacher.settings.dim)):
        short = kind.rpartition(".")[2]
        target = folder / f"document_{i}_{short}"
        _copy(path / source, target, _TRANSFORMER if short == "Transformer" else _OTHERS, root=path)
        types[target.name] = kind
    transformer = next(iter(types))
    if teacher.settings.max_length is not None:
        settings = {**read_settings(folder / transformer), "max_seq_length": teacher.settings.max_length}
        write_json(folder / transformer / "sentence_bert_config.json", settings)
    if not (path / "modules.json").is_file():  # a folder of transformers; torch teachers have its mean pooling
        names = teacher.source.pooling.modes if isinstance(teacher.source, ModelFolder) else ("mean",)
        modes = {key: mode in names for key, mode in POOLING_KEYS.items()}
        write_json(folder / "document_1_Pooling" / "config.json", {"word_embedding_dimension": teacher.dim, **modes})
    if not any(name.endswith("_Normalize") for name in types):
        name = f"document_{len(types)}_Normalize"
        write_json(folder / name / "config.json", {})
        types[name] = "sentence_transformers.models.Normalize"
    return types


def _modules(path: Path, dim: int | None) -> list[tuple[str, str]]:
    """Folder and type of each module of a model, with its ``2_Dense_{dim}`` where ``dim`` is set."""
    file = path / "modules.json"
    if not file.is_file():
        return [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]
    modules = [(str(module.get("path") or ""), str(module["type"])) for module in read_json(file)]
    for i, (source, kind) in enumerate(modules):
        if not MODULE_TYPE.fullmatch(kind):
            raise UserError(
                f"{file}: {kind!r} is no module of sentence_transformers, and code in a model folder is never run;"
                f" leave out export.asymmetric"
            )
        prefix = re.match(r"\d+_Dense", source)
        if dim is not None and prefix and (path / f"{prefix[0]}_{dim}").is_dir():
            modules[i] = (f"{prefix[0]}_{dim}", kind)
        folder_inside(path, modules[i][0], file)
    return modules


def _copy(source: Path, target: Path, names: re.Pattern[str], root: Path | None = None) -> None:
    """Copy the files of a module's folder that have one of ``names``; links lead only to files in ``root``, the model's
    folder."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()) if source.is_dir() else ():
        if not file.is_file() or not names.fullmatch(file.name):
            continue
        real = file_inside(file, root)
        if _REWRITTEN.fullmatch(file.name):
            write_json(target / file.name, to_publish(read_json(real)))
        else:
            shutil.copyfile(real, target / file.name)
    if not any(target.iterdir()):  # Normalize has no file in older folders
        write_json(target / "config.json", {})


def _card(name: str, documents: Documents) -> str:
    model = model_name(documents.teacher.settings)
    return "\n".join(
        [
            f"# {code_span(name)}: queries by the student, documents by {model}",
            "",
            f"Vectors of {documents.space.dim} dimensions. An index that {model} embedded stays as it is.",
            "",
            *_USE,
            "",
        ]
    )


_USE = (
    "```python",
    "from sentence_transformers import SentenceTransformer",
    "",
    'model = SentenceTransformer("path/to/this/folder")  # version 5.0 or later',
    'queries = model.encode_query(["..."])',
    'documents = model.encode_document(["..."])',
    "scores = model.similarity(queries, documents)",
    "```",
)


def query_encoder_section(recipe: Recipe, spaces: Sequence[Space], documents: Documents | None) -> list[str]:
    """Lines of the model card: in which teachers' ``spaces`` the student's queries find documents."""
    teachers = {teacher.name: model_name(teacher) for teacher in recipe.teachers}
    whole, parts = spaces[0], spaces[1:]
    lines = ["## A query encoder for an index of the teachers", ""]
    if parts:
        by = scales([teacher.weight for teacher in recipe.teachers])
        scaled = "" if len(set(by)) == 1 else f", multiplied by {', '.join(f'{scale:.6g}' for scale in by)}"
        lines += [
            f"Vectors of {whole.dim} dimensions are in the space of {' and '.join(teachers.values())}: each vector"
            f" normalised{scaled}, concatenated in this order, normalised again. Normalised again,",
            "",
            *(
                f"- components {part.start} to {part.stop - 1} are in the space of {teachers[part.teachers[0]]}"
                for part in parts
            ),
        ]
    else:
        lines.append(
            f"Vectors of {whole.dim} dimensions are in the space of {teachers[whole.teachers[0]]}: its vectors of"
            " documents can be searched with this model's queries."
        )
    if documents is not None:
        lines += [
            "",
            f"`{FOLDER}/` embeds queries with this model and documents with {teachers[documents.teacher.name]}:",
            "",
            *(line.replace("this/folder", f"this/folder/{FOLDER}") for line in _USE),
        ]
    return [*lines, ""]


def model_name(teacher: Teacher) -> str:
    """A teacher's model without the folders of this machine, in a code span."""
    return code_span(public_name(teacher.model)) if teacher.model else f"{code_span(teacher.name)} (imported vectors)"
