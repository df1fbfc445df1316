"""Texts -> vectors: a model folder, or a student in training, behind one ``encode``.

Texts are tokenised at once, packed into rows, and encoded in a few static shapes (``batch_shapes``) on all devices of
the process (``placed_model``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jasper_jax.assets.catalogue import CATALOGUE
from jasper_jax.assets.models import HUB_ID, resolve_model
from jasper_jax.encoders.batch_shapes import plan_batches
from jasper_jax.encoders.dense import dense
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.local_mesh import put_params
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.placed_model import PlacedModel, load_on_devices, refuse_dtype
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.prepared_texts import PreparedTexts
from jasper_jax.encoders.prompts import named_prompt, prompts_of_texts, replace_prompts
from jasper_jax.encoders.quantization import quantizer, read_ranges
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.runtime.errors import UserError
from jasper_jax.vision.image_tokens import inserted
from jasper_jax.vision.mixtures import images_of, input_list, is_image, read_mixtures
from jasper_jax.vision.vision_model import VisionModel


class Embedder:
    """A text-embedding model: encoder, pooling, and one chain of Dense steps per output dimension.

    ``outputs``: dimension -> [(kernel [in, out], bias [out] or None, activation), ...]; by default the pooled vector
    is the only output. ``default_dim``: the dimension of ``encode`` without ``dim``, by default the first output's.
    ``params`` may hold the layers in one stack or several. ``dtype`` is that of the encoder's computation; pooling and
    Dense steps are float32. With ``vision_model`` and its parameters ``vision_params`` it takes images too. ``mesh``:
    the devices to use, by default all of this process; parameters are copied there unless they are there already.
    ``ranges``: dimension -> ranges ``[2, E]`` of int8 vectors (``encoders.quantization``). ``image_root``: the folder
    whose files inputs may name by path; None: a path is refused.

    ``truncated`` counts the texts truncated to ``max_length`` so far.
    """

    def __init__(
        self,
        encoder: Encoder,
        params: Mapping[str, Any],
        tokenizer: Tokenizer,
        pooling: Pooling | None = None,
        *,
        outputs: Mapping[int, Sequence[tuple[Any, Any, str]]] | None = None,
        default_dim: int | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        max_length: int | None = None,
        normalize: bool = True,
        dtype: str = "float32",
        vision_model: VisionModel | None = None,
        vision_params: Mapping[str, Any] | None = None,
        mesh: Mesh | None = None,
        ranges: Mapping[int, np.ndarray] | None = None,
        image_root: str | Path | None = None,
    ):
        refuse_dtype(dtype)
        _refuse_count("max_length", max_length)
        tokenizer.check_vocabulary(encoder.vocab_size)
        limit = max_length or tokenizer.max_length or encoder.max_positions
        if limit > encoder.max_positions:
            raise UserError(
                f"max_length is {limit}; this {encoder.family.model_type} encoder has positions for "
                f"{encoder.max_positions} tokens"
            )
        self._model = PlacedModel(encoder, params, pooling or Pooling(), outputs or {}, dtype=dtype, mesh=mesh)
        self.encoder = encoder
        self.mesh = self._model.mesh
        self.params = self._model.params
        self.pooling = self._model.pooling
        self.tokenizer = tokenizer.with_max_length(limit)
        self.max_length = limit
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.normalize = normalize
        self.dtype = dtype
        self.vision_model = vision_model
        self.image_root = Path(image_root) if image_root else None  # "" of an unset variable is no folder
        self._vision_params = put_params(vision_params or {}, self.mesh)
        self.tokens = 0
        """Tokens encoded so far, padding not counted."""
        self.ranges = dict(ranges or {})
        self.default_dim = next(iter(self._model.outputs)) if default_dim is None else default_dim
        if self.default_dim not in self._model.outputs:
            raise UserError(f"default_dim is {self.default_dim}; outputs are {', '.join(map(str, self.dims))}")

    @classmethod
    def load(
        cls,
        path: str | Path | ModelFolder,
        dtype: str = "float32",
        *,
        max_length: int | None = None,
        prompts: Mapping[str, str] | None = None,
        dim: int | None = None,
        causal: bool | None = None,
        append_eos: bool | None = None,
        images: bool = True,
        image_root: str | Path | None = None,
    ) -> Embedder:
        """From a folder saved by sentence-transformers or transformers (safetensors only), the name of an asset, a hub
        id, or a folder already read.

        These override the folder: ``max_length``; ``prompts``, added to the folder's; ``dim``, the default dimension
        of ``encode``; ``causal``, for a decoder whose config.json does not say whether its attention is causal;
        ``append_eos``, see ``Tokenizer.load``. A model of texts and images takes images unless ``images`` is false or
        no image fits ``max_length``; paths of images are opened in the folder ``image_root`` only, by default nowhere.

        Vectors are L2-normalised whether or not the folder ends with a Normalize step.
        """
        refuse_dtype(dtype)
        _refuse_count("max_length", max_length)
        _refuse_count("dim", dim)
        if prompts is not None and not isinstance(prompts, Mapping):
            raise UserError(
                f"prompts is {prompts!r}; expected a dict of names and texts, such as {{'query': 'find: '}}"
            )
        if isinstance(path, str) and (path in CATALOGUE or HUB_ID.fullmatch(path)):
            path = resolve_model(path)
        folder = read_model_folder(path, causal=causal)
        encoder = encoder_from_config(folder.hf_config, str(folder.encoder_path / "config.json"))
        tokenizer = Tokenizer.load(
            folder.encoder_path,
            folder.max_length,
            lower_case=folder.lower_case,
            pad_id=encoder.config.pad_id,
            append_eos=folder.append_eos or append_eos,
        )
        # A limit in sentence_bert_config.json must fit the encoder; the tokenizer's is only a default, and is lowered.
        positions = encoder.max_positions
        limit = max_length or folder.max_length or min(tokenizer.max_length or positions, positions)
        vision_model, vision_params = None, None
        if images and folder.vision is not None and folder.vision.fits(limit):
            from jasper_jax.vision.load import load_part

            vision_model, vision_params = load_part(folder.vision, tokenizer, encoder, limit, dtype)
        params, mesh = load_on_devices(folder.encoder_path, encoder, dtype)
        return cls(
            encoder,
            params,
            tokenizer,
            folder.pooling,
            outputs=folder.outputs or None,
            default_dim=dim or folder.default_dim,
            prompts={**folder.prompts, **(prompts or {})},
            default_prompt_name=folder.default_prompt_name,
            max_length=limit,
            dtype=dtype,
            vision_model=vision_model,
            vision_params=vision_params,
            mesh=mesh,
            ranges=read_ranges(folder.path),
            image_root=image_root,
        )

    @property
    def dims(self) -> list[int]:
        """Output dimensions that ``encode(dim=...)`` takes, ascending."""
        return sorted(self._model.outputs)

    def output(self, dim: int) -> tuple[tuple[tuple[jax.Array, jax.Array | None], ...], tuple[str, ...]]:
        """The Dense steps of ``dim``, as ``encoders.dense.dense`` takes them: (kernel, bias or None) of each, and their
        activations."""
        return self._model.outputs[dim]

    def project(self, pooled: np.ndarray, dim: int) -> np.ndarray:
        """:meth:`pooled` vectors ``[n, D]`` through the Dense steps of ``dim``: ``[n, dim]``, not normalised."""
        return np.asarray(dense(pooled, *self.output(dim)))

    @property
    def truncated(self) -> int:
        return self.tokenizer.truncated

    def prompt(self, kind: str | None) -> str:
        """The text put before a text of ``kind``.

        ``"query"``: the first non-empty one of the prompts ``query`` and ``s2p_query`` (Stella's retrieval prompt).
        ``"passage"``: of ``passage``, ``document`` and ``corpus``. None: the folder's ``default_prompt_name``. Without
        such a prompt, "". Any other kind must be the name of a prompt.
        """
        return named_prompt(self.prompts, kind, self.default_prompt_name)

    def with_prompts(self, prompts: Mapping[str, str]) -> Embedder:
        """The same model, on the same memory, with these prompts by kind in place of its own."""
        other = copy(self)
        other.prompts = replace_prompts(self.prompts, prompts)
        return other

    def encode(
        self,
        texts: Any,
        kind: str | None | Sequence[str | None] = None,
        dim: int | None = None,
        *,
        precision: str = "float32",
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Vectors ``[len(texts), dim]`` in the order of ``texts``; a single text (a str) or image gives ``[dim]``.

        Args:
          texts: texts; with a model of images also images and lists of both (``vision.mixtures``). A text longer than
            ``max_length`` tokens is truncated, and counted in ``truncated``.
          kind: ``"query"``, ``"passage"``, another prompt's name or None (see ``prompt``); one, or one per text.
          dim: one of ``dims``.
          precision: float32, int8, uint8, binary or ubinary, as in sentence-transformers; the last two give
            ``[len(texts), ceil(dim / 8)]``. int8 and uint8 need the folder's ranges, which an export has.
          batch_tokens: tokens per batch of all devices, padding included.

        Raises:
          UserError: a text that cannot be used, by its index; a wrong ``kind``, ``dim`` or ``precision``.
        """
        dim = self._checked_dim(dim)
        quantize = quantizer(precision, dim, self.ranges)
        return quantize(self._run(texts, kind, dim, batch_tokens, show_progress))

    def pooled(
        self,
        texts: Any,
        kind: str | None | Sequence[str | None] = None,
        *,
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """float32 ``[len(texts), D]``: the vectors before any Dense step, not normalised."""
        return self._run(texts, kind, None, batch_tokens, show_progress)

    def prepare(
        self, texts: Sequence[Any], kind: str | None | Sequence[str | None] = None, dim: int | None = None
    ) -> Callable[[], np.ndarray]:
        """Tokenise and pack ``texts`` now; the function returned encodes them, as :meth:`encode` would.

        Another thread may prepare texts while one encodes, so that devices need not wait for the host.
        """
        dim = self._checked_dim(dim)
        return partial(self._compute, self._prepare(texts, kind, None), dim, show_progress=False)

    def _run(self, texts, kind, dim, batch_tokens, show_progress) -> np.ndarray:
        """Vectors of ``dim``; None: pooled ones."""
        if isinstance(texts, str) or is_image(texts):
            return self._run([texts], kind, dim, batch_tokens, show_progress)[0]
        return self._compute(self._prepare(texts, kind, batch_tokens), dim, show_progress=show_progress)

    def _prepare(self, texts: Any, kind: Any, batch_tokens: int | None) -> PreparedTexts:
        texts = input_list(texts)
        _refuse_count("batch_tokens", batch_tokens)
        prompts = prompts_of_texts(kind, len(texts), self.prompt)
        if not texts:
            return PreparedTexts([], [], None, [])
        inputs = read_mixtures(texts, prompts, self.vision_model, self.image_root)
        ids = self.tokenizer.encode([mixture.text for mixture in inputs])
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        shapes = self._model.row_shapes(self.max_length, batch_tokens)
        images = images_of(inputs, ids, self.vision_model, self.max_length)
        skip = None if self.pooling.include_prompt else self.tokenizer.prompt_lengths(prompts)
        return PreparedTexts(ids, images, skip, plan_batches(lengths, shapes), self.tokenizer.pad_id)

    def _compute(self, prepared: PreparedTexts, dim: int | None, *, show_progress: bool) -> np.ndarray:
        self.tokens += sum(map(len, prepared.ids))
        insert = None  # the tokens of images into a batch
        if prepared.images:
            assert self.vision_model is not None
            insert = partial(inserted, self.vision_model, self.dtype, self._vision_params, images=prepared.images)
        return self._model.vectors(
            prepared, dim, normalized=self.normalize, inserted=insert, show_progress=show_progress
        )

    def _checked_dim(self, dim: int | None) -> int:
        dim = self.default_dim if dim is None else dim
        if not isinstance(dim, (int, np.integer)) or dim not in self._model.outputs:
            raise UserError(f"dim is {dim!r}; this model has {', '.join(map(str, self.dims))}")
        return dim


def _refuse_count(name: str, value: Any) -> None:
    """UserError unless ``value`` is None or a whole number of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
        raise UserError(f"{name} is {value!r}; expected a whole number of at least 1, or None")
