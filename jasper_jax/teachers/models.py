"""The model of a recipe's teacher: its folder, its vectors' dimension and identity, its encoder; each read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.assets.models import is_here, model_identity, resolve_model
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.prompts import KINDS, prompt_of, read_prompts
from jasper_jax.encoders.published import describe as published
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.tokenizer_config import length_limit
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError
from jasper_jax.teachers.torch_teacher import TorchEncoder
from jasper_jax.teachers.vectors import VectorSpec


class TeacherModel:
    """An entry of ``teachers``: its ``settings``, and the model that they name."""

    def __init__(self, settings: Teacher, *, describe: bool = False, progress: bool = True):
        """``describe``: use the published description of a model that is not on this machine instead of fetching it."""
        self.settings, self._describe, self._progress = settings, describe, progress
        self._recipe_prompts = {k: text for k, text in settings.prompts.model_dump().items() if text is not None}

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def path(self) -> Path:
        """Folder of the model, fetched if necessary.

        Raises:
          UserError: its vectors are imported, so there is no model.
        """
        if self.settings.model is None:
            raise UserError(
                f"teachers.{self.name}: no model is given, so its vectors must be imported:"
                f" jasper vectors import RECIPE {self.name} FILE"
            )
        return resolve_model(self.settings.model, self.settings.revision, progress=self._progress)

    @cached_property
    def source(self) -> ModelFolder | Path | None:
        """The model's folder as read; its path where sentence-transformers reads it (``backend: torch``); None where
        vectors are imported."""
        settings = self.settings
        if settings.model is None:
            return None
        absent = self._describe and not is_here(settings.model, settings.revision)
        if absent and (description := published(settings.model, settings.causal)):
            return description
        return self.path if settings.backend == "torch" else read_model_folder(self.path, causal=settings.causal)

    @cached_property
    def dim(self) -> int:
        """T, the dimension of its vectors.

        Raises:
          UserError: the model has no output of ``dim``, or vectors are imported and ``dim`` is not set.
        """
        dim, folder = self.settings.dim, self.source
        if self.settings.backend == "torch" or not isinstance(folder, ModelFolder):
            if dim is None:
                raise UserError(f"teachers.{self.name}.dim: vectors that are imported need their dimension here")
            return dim
        width = folder.pooling.size(encoder_from_config(folder.hf_config, str(folder.path)).hidden_size)
        dims = sorted(folder.outputs) or [width]
        if dim is not None and dim not in dims:
            raise UserError(
                f"teachers.{self.name}.dim: {dim} is not a dimension of {folder.path}; it has"
                f" {', '.join(map(str, dims))}"
            )
        return dim or folder.default_dim or width

    @property
    def weights(self) -> int | None:
        """Numbers that every token is multiplied with; None where sentence-transformers runs the model."""
        folder = self.source
        if self.settings.backend == "torch" or not isinstance(folder, ModelFolder):
            return None
        return encoder_from_config(folder.hf_config, str(folder.path)).weights_per_token

    @cached_property
    def spec(self) -> VectorSpec:
        """What its vectors depend on: recorded in a store, and compared before vectors are added or used. Reads all
        weights, for their checksums."""
        settings, source = self.settings, self.source
        if source is None:
            identity: dict[str, Any] = {"id": "imported"}
            prompts, pooling, max_length = {}, "imported", None
        else:
            path = source.path if isinstance(source, ModelFolder) else source
            if settings.backend == "torch" or not isinstance(source, ModelFolder):
                identity = {"backend": "torch"}
                prompts, pooling, max_length = read_prompts(path)[0], "sentence-transformers", settings.max_length
            else:
                identity = {k: v for k in ("causal", "append_eos") if (v := getattr(settings, k)) is not None}
                pooling = "+".join(source.pooling.modes)
                if not source.pooling.include_prompt:
                    pooling += ", prompt left out"
                max_length = settings.max_length or source.max_length
                if max_length is None:
                    positions = encoder_from_config(source.hf_config, str(path)).max_positions
                    max_length = min(length_limit(source.encoder_path) or positions, positions)
                prompts = source.prompts
            identity |= {"compute_dtype": settings.compute_dtype}
            identity |= model_identity(settings.model or "", settings.revision, path)
            prompts = {kind: prompt_of({**prompts, **self._recipe_prompts}, kind) for kind in KINDS}
        return VectorSpec({"name": self.name, **identity}, prompts, pooling, max_length, self.dim, settings.dtype)

    def check_tokenizer(self) -> None:
        """Raise what :meth:`load` would raise about the tokenizer and ``max_length``, without reading weights."""
        folder, settings = self.source, self.settings
        assert isinstance(folder, ModelFolder)
        encoder = encoder_from_config(folder.hf_config, str(folder.path))
        tokenizer = Tokenizer.load(
            folder.encoder_path, lower_case=folder.lower_case, append_eos=folder.append_eos or settings.append_eos
        )
        tokenizer.check_vocabulary(encoder.vocab_size)
        limit = settings.max_length or folder.max_length
        if limit is not None and limit > encoder.max_positions:
            where = f"teachers.{self.name}.max_length"
            said = f"{limit}" if settings.max_length else f"{limit} is the max_seq_length of {folder.path}"
            raise UserError(
                f"{where}: {said}, but its encoder has positions for {encoder.max_positions} tokens; set {where} to at"
                f" most {encoder.max_positions}"
            )

    def load(self) -> Embedder:
        """The model with its weights, ready to encode as the recipe says."""
        settings = self.settings
        return Embedder.load(
            self.path if self.source is None else self.source,
            dtype=settings.compute_dtype,
            max_length=settings.max_length,
            prompts=self._recipe_prompts,
            dim=settings.dim,
            causal=settings.causal,
            append_eos=settings.append_eos,
        )

    def encoder(self, rank: int = 0) -> TeacherEncoder | TorchEncoder:
        """``(texts, kinds) -> [n, T]``; weights are loaded when a text is first encoded. ``rank``: this process's index
        among those that embed."""
        if self.settings.backend == "torch":
            return TorchEncoder(self.settings, self.path, self._recipe_prompts, rank)
        return TeacherEncoder(self.load)


class TeacherEncoder:
    """``(texts, kinds) -> [n, T]`` for ``embed_teacher``; the model is loaded when a text is first encoded."""

    def __init__(self, load: Callable[[], Embedder]):
        self._load = load

    @cached_property
    def _embedder(self) -> Embedder:
        return self._load()

    @property
    def tokens(self) -> int:
        """Tokens encoded so far, padding not counted."""
        return self._embedder.tokens

    def prepare(self, texts: Sequence[str], kinds: Sequence[str]) -> Callable[[], np.ndarray]:
        return self._embedder.prepare(list(texts), kind=list(kinds))

    def __call__(
        self,
        texts: Sequence[str],
        kinds: Sequence[str],
        prompts: Mapping[str, str] | None = None,
        *,
        show_progress: bool = False,
    ) -> np.ndarray:
        """``prompts``: by kind, in place of the teacher's own."""
        embedder = self._embedder.with_prompts(prompts) if prompts else self._embedder
        return embedder.encode(list(texts), kind=list(kinds), show_progress=show_progress)
