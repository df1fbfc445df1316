"""What MTEB's leaderboard wants to know of a model: its name, revision, sizes and licence."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from mteb.models.model_meta import ModelMeta, ScoringFunction  # pyright: ignore[reportMissingImports]
from mteb.models.sentence_transformer_wrapper import (  # pyright: ignore[reportMissingImports]
    SentenceTransformerEncoderWrapper,
)
from mteb.types import Licenses  # pyright: ignore[reportMissingImports]

from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.assets.models import HUB_ID
from jasper_jax.benchmarks.encoder import Model
from jasper_jax.recipe.yaml_text import parse_yaml
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_file
from jasper_jax.runtime.inside import file_inside
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.text_files import text_of

_LOCAL = "local/"  # the organisation of models that are on no hub
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
_IMPORTS = """\
\"\"\"For mteb/models/model_implementations; complete what is None.\"\"\"

from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

model = """


def model_meta(name: str, folder: Path, model: Model) -> ModelMeta:
    """MTEB's description of a model at its default dimension; what the folder does not say is None.

    Licence and base model are those of the front matter of the folder's README.md.
    """
    card = _card(folder)
    licence, base = card.get("license"), card.get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    return ModelMeta(
        loader=SentenceTransformerEncoderWrapper,
        name=name,
        revision=revision(folder),
        release_date=None,
        languages=None,
        n_parameters=model.weights,
        n_embedding_parameters=model.embedding_weights,
        memory_usage_mb=round(model.weights * 4 / 2**20),
        max_tokens=model.max_length,
        embed_dim=model.default_dim,
        license=licence if licence in get_args(Licenses) else None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["JAX", "Sentence Transformers", "PyTorch", "safetensors"],
        reference=None if name.startswith(_LOCAL) else f"https://huggingface.co/{name}",
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=any(model.prompts.values()),
        training_datasets=None,
        adapted_from=base if isinstance(base, str) and HUB_ID.fullmatch(base) else None,
    )


def at_dimension(meta: ModelMeta, dim: int, experiment: dict[str, Any]) -> ModelMeta:
    """``meta`` for results of ``dim`` dimensions, under its own name of an experiment unless all is the default."""
    kwargs = {**({"embed_dim": dim} if dim != meta.embed_dim else {}), **experiment}
    return meta.model_copy(update={"embed_dim": dim, "experiment_kwargs": kwargs or None})


def model_name(model: str, given: str | None) -> str:
    """``organisation/name`` under which results are kept: ``given``, the hub's, or ``local/`` and the folder's name.

    The folder ``export`` of a run is called by its run.

    Raises:
      UserError: ``given`` is not of that form.
    """
    if given is not None:
        if not HUB_ID.fullmatch(given):
            raise UserError(f"--name {given!r}: expected ORGANISATION/NAME, as on the hub")
        return given
    if model in CATALOGUE:
        return CATALOGUE[model].hub or f"{_LOCAL}{model}"
    path = Path(os.path.abspath(user_path(model, "model")))
    if not path.is_dir():
        return model
    return f"{_LOCAL}{path.parent.name if path.name == 'export' else path.name}"


def revision(folder: Path) -> str:
    """The commit of a hub snapshot; else 12 hexadecimal digits of the sha256 of weights, tokenizer and settings.

    So the results of another export are never taken for this one's.

    Raises:
      UserError: one of these files is a link out of the folder.
    """
    if folder.parent.name == "snapshots":
        return folder.name
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if (file.suffix in (".json", ".safetensors", ".model") or file.name == "vocab.txt") and file.is_file():
            digest.update(f"{file.relative_to(folder).as_posix()} {sha256_file(file_inside(file, folder))}\n".encode())
    return digest.hexdigest()[:12]


def as_module(meta: ModelMeta) -> str:
    """A Python module that defines ``meta``, for MTEB's repository."""
    return _IMPORTS + meta.to_python() + "\n"


def _card(folder: Path) -> dict[Any, Any]:
    """The front matter of the folder's model card; empty without one, or if it cannot be read.

    Raises:
      UserError: README.md is a link out of the folder.
    """
    if not (folder / "README.md").is_file():
        return {}
    file = file_inside(folder / "README.md")
    try:
        found = _FRONT_MATTER.match(text_of(file))
        card = parse_yaml(found[1]) if found else None
    except (UserError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}
