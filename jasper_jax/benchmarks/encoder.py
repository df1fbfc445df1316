"""A model behind MTEB's encoder protocol: lists of texts of a task -> vectors, with the model's prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from mteb.models.abs_encoder import AbsEncoder  # pyright: ignore[reportMissingImports]

from jasper_jax.benchmarks.prompts import prompt_kind, with_prompts
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.prompts import prompt_of
from jasper_jax.evaluation.similarity import truncate
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.library_output import shown_logs
from jasper_jax.teachers.torch_settings import no_code
from jasper_jax.teachers.torch_teacher import only_texts, refuse_harmful_files

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata  # pyright: ignore[reportMissingImports]
    from mteb.models.model_meta import ModelMeta  # pyright: ignore[reportMissingImports]
    from mteb.types import PromptType  # pyright: ignore[reportMissingImports]

BACKENDS = ("jax", "sentence-transformers")


@dataclass(frozen=True)
class Model:
    """A loaded model, whatever computes it."""

    encode: Callable[[Sequence[str], str | None, int], np.ndarray]
    """Texts, the ``kind`` of ``prompts.prompt_kind`` and a dimension -> float32 ``[n, dim]`` of length 1."""
    prompts: Mapping[str, str]
    dims: Sequence[int]
    """Dimensions that the model was made for, ascending; others are the first components of ``default_dim``."""
    default_dim: int
    max_length: int | None
    weights: int
    embedding_weights: int | None


def jax_model(folder: Path, prompts: Mapping[str, str], batch_tokens: int | None) -> Model:
    """The model of a folder in JAX, on all devices of this process; ``prompts`` replace the folder's."""
    embedder = Embedder.load(folder, images=False)
    embedder.prompts = with_prompts(embedder.prompts, prompts)

    def encode(texts: Sequence[str], kind: str | None, dim: int) -> np.ndarray:
        own = dim if dim in embedder.dims else None
        vectors = embedder.encode(list(texts), kind, own, batch_tokens=batch_tokens, show_progress=True)
        return vectors if own else truncate(vectors, dim)

    weights = sum(leaf.size for leaf in jax.tree.leaves(embedder.params))
    heads = sum(leaf.size for leaf in jax.tree.leaves(embedder.output(embedder.default_dim)[0]))
    table = embedder.params["embeddings"]
    return Model(
        encode,
        embedder.prompts,
        embedder.dims,
        embedder.default_dim,
        embedder.max_length,
        weights + heads,
        table.get("word", table)["embedding"].size,
    )


def torch_model(folder: Path, prompts: Mapping[str, str]) -> Model:
    """The same by sentence-transformers, which knows only the folder's default dimension and cuts it.

    Raises:
      UserError: sentence-transformers cannot load the folder, or not without running code from it, or would read links
        out of it or pickles.
    """
    refuse_harmful_files("--backend sentence-transformers", folder)
    from sentence_transformers import SentenceTransformer

    try:
        with no_code(), shown_logs():
            model = SentenceTransformer(
                str(folder), local_files_only=True, trust_remote_code=False, model_kwargs={"use_safetensors": True}
            )
    except Exception as error:
        raise UserError(f"{folder}: sentence-transformers cannot load it ({first_line(error)})") from error
    names = with_prompts({name: text for name, text in model.prompts.items() if text is not None}, prompts)
    default = names.get(model.default_prompt_name or "", "")
    dim = len(model.encode("", prompt=""))

    def encode(texts: Sequence[str], kind: str | None, dim: int) -> np.ndarray:
        prompt = default if kind is None else prompt_of(names, kind)
        # Always a prompt: without one, sentence-transformers adds the model's default prompt.
        given = only_texts(model, texts, prompt)
        return truncate(model.encode(given, prompt=prompt, show_progress_bar=True), dim)

    table = getattr(getattr(model[0], "auto_model", None), "get_input_embeddings", lambda: None)()
    return Model(
        encode,
        names,
        [dim],
        dim,
        int(model.max_seq_length or 0) or None,
        sum(parameter.numel() for parameter in model.parameters()),
        None if table is None else table.weight.numel(),
    )


class MtebEncoder(AbsEncoder):
    """``mteb.models.EncoderProtocol`` of a model at one dimension; similarities are cosines."""

    def __init__(self, model: Model, dim: int, meta: ModelMeta):
        self.model, self.dim, self.mteb_model_meta = model, dim, meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """float32 ``[n, dim]`` of the texts of ``inputs``, batches of ``{"text": [...]}``.

        They are encoded together, packed and batched by the model itself: ``batch_size`` in ``kwargs`` says nothing.

        Raises:
          UserError: a vector is not finite.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        place = {text: number for number, text in enumerate(dict.fromkeys(texts))}  # many tasks repeat texts
        kind = prompt_kind(self.model.prompts, task_metadata, prompt_type)
        vectors = self.model.encode(list(place), kind, self.dim)
        if bad := int(np.count_nonzero(~np.isfinite(vectors).all(axis=1))):
            raise UserError(
                f"{self.mteb_model_meta.name}: {bad:,} of {len(vectors):,} vectors of {task_metadata.name} are not"
                " finite; its weights are damaged"
            )
        return vectors[[place[text] for text in texts]]
