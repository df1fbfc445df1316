"""Texts -> vectors: a model folder, or a student in training, behind one ``encode``.

Texts are tokenised at once, packed into rows, and encoded in a few static shapes (``batch_shapes``). Parameters are
arguments of the compiled programs, never constants in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jasper_jax.encoders.batch_shapes import RowBatch, plan_batches, texts_per_row
from jasper_jax.encoders.dense import ACTIVATIONS, dense
from jasper_jax.encoders.encoder import Encoder
from jasper_jax.encoders.folder import read_model_folder
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.packed import encode_packed
from jasper_jax.encoders.packing import fill_rows
from jasper_jax.encoders.pooling import Pooling
from jasper_jax.encoders.prompts import PROMPT_NAMES, prompt_of
from jasper_jax.encoders.registry import encoder_from_config
from jasper_jax.encoders.tokenization import Tokenizer
from jasper_jax.encoders.weights import load_params
from jasper_jax.losses import normalize
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.progress import bar
from jasper_jax.vision.image_tokens import inserted
from jasper_jax.vision.mixtures import Mixture, check_images, is_image, read_mixture
from jasper_jax.vision.vision_model import VisionModel

DTYPES = ("float32", "bfloat16", "float16")
_BATCH_TOKENS = {"cpu": 1024}  # measured; elsewhere:
_BATCH_TOKENS_ACCELERATOR = 32768
_PROGRAM_COST = {"cpu": 4e10}  # multiplications and additions in the time that compiling one more shape takes
_PROGRAM_COST_ACCELERATOR = 3e14
_IN_FLIGHT = 2  # batches dispatched before the oldest is fetched: the host prepares batches while the device computes


_pooled = jax.jit(encode_packed, static_argnames=("encoder", "pooling", "compute_dtype"))


@partial(jax.jit, static_argnames=("activations", "normalized"))
def _output(weights: Any, activations: tuple[str, ...], normalized: bool, x: jax.Array) -> jax.Array:
    x = dense(x, weights, activations)
    return normalize(x) if normalized else x


class Embedder:
    """A text-embedding model: encoder, pooling, and one chain of Dense steps per output dimension.

    ``outputs``: dimension -> [(kernel [in, out], bias [out] or None, activation), ...]; by default the pooled vector
    is the only output. ``default_dim``: the dimension of ``encode`` without ``dim``, by default the first output's.
    ``params`` may hold the layers in one stack or several; JAX arrays are not copied. ``dtype`` is that of the
    encoder's computation; pooling and Dense steps are float32. With ``vision_model`` and its parameters
    ``vision_params`` it takes images too.

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
    ):
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        tokenizer.check_vocabulary(encoder.vocab_size)
        limit = max_length or tokenizer.max_length or encoder.max_positions
        if limit > encoder.max_positions:
            raise UserError(
                f"max_length is {limit}; this {encoder.family.model_type} encoder has positions for "
                f"{encoder.max_positions} tokens"
            )
        self.encoder = encoder
        self.params = jax.tree.map(jnp.asarray, dict(params))
        self.pooling = pooling or Pooling()
        self.tokenizer = tokenizer.with_max_length(limit)
        self.max_length = limit
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.normalize = normalize
        self.dtype = dtype
        self.vision_model = vision_model
        self._vision_params = jax.tree.map(jnp.asarray, dict(vision_params or {}))
        self.tokens = 0
        """Tokens encoded so far, padding not counted."""
        self._flops_per_token = 2 * sum(leaf.size for leaf in jax.tree.leaves(self.params["layers"]))
        pooled = self.pooling.size(encoder.hidden_size)
        self._outputs = {
            dim: (
                tuple((jnp.asarray(kernel), None if bias is None else jnp.asarray(bias)) for kernel, bias, _ in chain),
                tuple(activation for _, _, activation in chain),
            )
            for dim, chain in (outputs or {pooled: ()}).items()
        }
        self.default_dim = next(iter(self._outputs)) if default_dim is None else default_dim
        self._check_outputs(pooled)

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
    ) -> Embedder:
        """From a folder saved by sentence-transformers or transformers (safetensors only), or a folder already read.

        These override the folder: ``max_length``; ``prompts``, added to the folder's; ``dim``, the default dimension
        of ``encode``; ``causal``, for a decoder whose config.json does not say whether its attention is causal;
        ``append_eos``, see ``Tokenizer.load``. A model of texts and images takes images unless ``images`` is false or
        no image fits ``max_length``.

        Vectors are L2-normalised whether or not the folder ends with a Normalize step.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
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
        if (
            images and folder.vision is not None and folder.vision.tokens + 4 <= limit
        ):  # 4: image start and end, special tokens
            from jasper_jax.vision.load import load_part

            vision_model, vision_params = load_part(folder.vision, tokenizer, encoder, limit, dtype)
        return cls(
            encoder,
            load_params(folder.encoder_path, encoder, dtype=dtype),
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
        )

    @property
    def dims(self) -> list[int]:
        """Output dimensions that ``encode(dim=...)`` takes, ascending."""
        return sorted(self._outputs)

    def output(self, dim: int) -> tuple[tuple[tuple[jax.Array, jax.Array | None], ...], tuple[str, ...]]:
        """The Dense steps of ``dim``, as ``encoders.dense.dense`` takes them: (kernel, bias or None) of each, and their
        activations."""
        return self._outputs[dim]

    @property
    def truncated(self) -> int:
        return self.tokenizer.truncated

    def prompt(self, kind: str | None) -> str:
        """The text put before a text of ``kind``.

        ``"query"``: the first non-empty one of the prompts ``query`` and ``s2p_query`` (Stella's retrieval prompt).
        ``"passage"``: of ``passage``, ``document`` and ``corpus``. None: the folder's ``default_prompt_name``. Without
        such a prompt, "". Any other kind must be the name of a prompt.
        """
        if kind is None:
            return self.prompts.get(self.default_prompt_name or "", "")
        if kind in PROMPT_NAMES or kind in self.prompts:
            return prompt_of(self.prompts, kind)
        names = ", ".join(dict.fromkeys((*PROMPT_NAMES, *self.prompts)))
        raise UserError(f"kind is {kind!r}; this model has {names}")

    def encode(
        self,
        texts: Any,
        kind: str | None | Sequence[str | None] = None,
        dim: int | None = None,
        *,
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """float32 ``[len(texts), dim]``, in the order of ``texts``; a single text (a str) or image gives ``[dim]``.

        Args:
          texts: texts; with a model of images also images and lists of both (``vision.mixtures``). A text longer than
            ``max_length`` tokens is truncated, and counted in ``truncated``.
          kind: ``"query"``, ``"passage"``, another prompt's name or None (see ``prompt``); one, or one per text.
          dim: one of ``dims``.
          batch_tokens: tokens per batch, padding included.

        Raises:
          UserError: a text that cannot be used, by its index; a wrong ``kind`` or ``dim``.
        """
        dim = self.default_dim if dim is None else dim
        if dim not in self._outputs:
            raise UserError(f"dim is {dim!r}; this model has {', '.join(map(str, self.dims))}")
        head = partial(_output, *self.output(dim), self.normalize)
        return self._run(texts, kind, head, dim, batch_tokens, show_progress)

    def pooled(
        self,
        texts: Any,
        kind: str | None | Sequence[str | None] = None,
        *,
        batch_tokens: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """float32 ``[len(texts), D]``: the vectors before any Dense step, not normalised."""
        width = self.pooling.size(self.encoder.hidden_size)
        return self._run(texts, kind, lambda x: x, width, batch_tokens, show_progress)

    def _run(self, texts, kind, head, width, batch_tokens, show_progress) -> np.ndarray:
        if isinstance(texts, str) or is_image(texts):
            return self._run([texts], kind, head, width, batch_tokens, show_progress)[0]
        texts = list(texts)
        prompts = self._prompts_of(texts, kind)
        out = np.empty((len(texts), width), np.float32)
        if not texts:
            return out
        inputs = [
            read_mixture(text, self.vision_model, f"texts[{i}]", lambda prompt=prompt: prompt)
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        ]
        ids = self.tokenizer.encode([mixture.text for mixture in inputs])
        images = self._images(inputs, ids)
        self.tokens += sum(map(len, ids))
        skip = self._prompt_lengths(prompts)
        backend = jax.default_backend()
        batches = plan_batches(
            np.fromiter(map(len, ids), np.int64, len(ids)),
            batch_tokens=batch_tokens or _BATCH_TOKENS.get(backend, _BATCH_TOKENS_ACCELERATOR),
            longest=self.max_length,
            program_cost=_PROGRAM_COST.get(backend, _PROGRAM_COST_ACCELERATOR) / self._flops_per_token,
        )
        waiting: deque[tuple[RowBatch, jax.Array]] = deque()
        with bar("embedding", len(texts), "texts", enabled=show_progress) as progress:

            def fetch() -> None:
                batch, vectors = waiting.popleft()
                slots = batch.packing.row * texts_per_row(batch.length) + batch.packing.place
                out[batch.indices] = np.asarray(vectors)[slots]
                progress.advance(len(batch.indices))

            for batch in batches:
                rows = self._rows(batch, ids, skip)
                seen = None
                if images:
                    assert self.vision_model is not None
                    seen = inserted(self.vision_model, self.dtype, self._vision_params, batch, rows["ids"], images)
                vectors = _pooled(
                    self.encoder, self.pooling, self.params, rows, inserted=seen, compute_dtype=self.dtype
                )
                waiting.append((batch, head(vectors)))
                if len(waiting) > _IN_FLIGHT:
                    fetch()
            while waiting:
                fetch()
        return out

    def _rows(self, batch: RowBatch, ids: Sequence[np.ndarray], skip: np.ndarray | None) -> dict[str, np.ndarray]:
        """The batch as ``encoders.packed.Packed``, without ``slots``: their number would be one more static shape."""
        shape = (batch.rows, batch.length)
        texts = [ids[text] for text in batch.indices]
        tokens, lengths = fill_rows(texts, batch.packing, shape, texts_per_row(batch.length), self.tokenizer.pad_id)
        if skip is None:
            return {"ids": tokens, "lengths": lengths}
        prompts = np.zeros_like(lengths)
        prompts[batch.packing.row, batch.packing.place] = skip[batch.indices]
        return {"ids": tokens, "lengths": lengths, "prompts": prompts}

    def _images(self, inputs: Sequence[Mixture], ids: Sequence[np.ndarray]) -> list[list[tuple[Any, str]]]:
        """The images of each input, each with the input's name for error messages; [] if no input has an image."""
        if not any(mixture.images for mixture in inputs):
            return []
        assert self.vision_model is not None
        for i, (mixture, tokens) in enumerate(zip(inputs, ids, strict=True)):
            if mixture.images:
                check_images(tokens.tolist(), mixture, self.vision_model, f"texts[{i}]", self.max_length)
        return [[(image, f"texts[{i}]") for image in mixture.images] for i, mixture in enumerate(inputs)]

    def _prompts_of(self, texts: list[Any], kind: str | None | Sequence[str | None]) -> list[str]:
        if kind is None or isinstance(kind, str):
            return [self.prompt(kind)] * len(texts)
        if len(kind) != len(texts):
            raise UserError(f"{len(kind)} kinds for {len(texts)} texts; give one kind for all, or one per text")
        prompts = {text_kind: self.prompt(text_kind) for text_kind in set(kind)}
        return [prompts[text_kind] for text_kind in kind]

    def _prompt_lengths(self, prompts: list[str]) -> np.ndarray | None:
        """The number of tokens of each prompt; None if the pooling includes prompts."""
        if self.pooling.include_prompt:
            return None
        lengths = {prompt: self.tokenizer.prompt_length(prompt) for prompt in set(prompts)}
        return np.array([lengths[prompt] for prompt in prompts], np.int32)

    def _check_outputs(self, pooled: int) -> None:
        for dim, (weights, activations) in self._outputs.items():
            width = pooled
            for kernel, _ in weights:
                if kernel.shape[0] != width:
                    raise UserError(f"output {dim}: a kernel takes {kernel.shape[0]} dimensions, {width} come in")
                width = kernel.shape[1]
            if width != dim:
                raise UserError(f"output {dim}: its Dense steps give {width} dimensions")
            for activation in activations:
                if activation not in ACTIVATIONS:
                    raise UserError(
                        f"output {dim}: activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}"
                    )
        if self.default_dim not in self._outputs:
            raise UserError(f"default_dim is {self.default_dim}; outputs are {', '.join(map(str, self.dims))}")
