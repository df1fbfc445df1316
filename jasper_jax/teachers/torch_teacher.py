"""Teachers through sentence-transformers (``teachers[].backend: torch``): models that no encoder here implements."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jasper_jax.encoders.hf_config import read_object
from jasper_jax.encoders.lora import CONFIG, refuse_adapter_alone
from jasper_jax.encoders.prompts import prompt_of, read_prompts, replace_prompts
from jasper_jax.encoders.tokenizer_file import load_backend
from jasper_jax.recipe.config import Teacher
from jasper_jax.runtime.errors import UserError, first_line
from jasper_jax.runtime.inside import refuse_links
from jasper_jax.runtime.library_output import shown_logs
from jasper_jax.teachers.torch_settings import no_code, refuse_settings


def refuse_without_torch(teacher: Teacher) -> None:
    """UserError if sentence-transformers is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError(
            f"teachers.{teacher.name}.backend: torch needs sentence-transformers: pip install 'jasper-jax[export]'"
        )


def refuse_harmful_files(where: str, folder: Path, *, modules: bool = True) -> None:
    """UserError, which names ``where`` the folder is asked for: sentence-transformers would follow a link or a setting
    out of it, or unpickle weights of it, which ``model_identity`` does not hash and which may hold code; or a
    tokenizer.json of it is harmful. ``modules``: whether its list of modules is followed."""
    refuse_links(folder)
    refuse_settings(where, folder, modules=modules)
    for pickle in sorted(folder.rglob("*.bin")):
        stem = next((stem for name, stem in _PICKLES.items() if pickle.name.startswith(name)), None)
        # A file that is not a shard is loaded beside an index too, where it is a module's.
        ends = ("",) if pickle.stem in _PICKLES else ("", ".index.json")
        if stem and not any((pickle.parent / f"{stem}.safetensors{end}").is_file() for end in ends):
            raise UserError(
                f"{where}: {pickle} has no {stem}.safetensors beside it, and pickled weights are never"
                f" loaded; save the model once as safetensors where you trust it"
            )
    for path in sorted(folder.rglob("*.safetensors.index.json")):
        shards = read_object(path).get("weight_map")
        for name in shards.values() if isinstance(shards, dict) else ():
            if not (isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name):
                raise UserError(
                    f"{where}: {path}: names {str(name)[:200]!r}; shards are .safetensors files in the same folder, and"
                    " pickled weights are never loaded; save the model once as safetensors where you trust it"
                )
    for path in sorted(folder.rglob(CONFIG)):
        refuse_adapter_alone(path.parent)
        raise UserError(
            f"{where}: {path}: sentence-transformers reads the settings of the model that an adapter names, from"
            " wherever that is; merge the adapter where peft is installed (merge_and_unload) and use that folder"
        )
    for path in sorted(folder.rglob("tokenizer.json")):
        load_backend(path)


_PICKLES = {"pytorch_model": "model", "adapter_model": "adapter_model"}
"""Beginning of a pickle's name that is loaded -> the stem of the safetensors file that is loaded instead."""
_LOCAL_RANKS = ("SLURM_LOCALID", "LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")


def torch_device(gpus: int, own: Sequence[int], rank: int, environment: Mapping[str, str]) -> str | None:
    """The PyTorch device of a process; None: sentence-transformers chooses.

    Args:
      gpus: those that PyTorch sees; all processes of a host may see the same.
      own: the GPUs that JAX uses in this process, by their number among those.
      rank: this process's index among all, which counts where JAX has no GPU and the launcher sets no local rank.
    """
    if not gpus:
        return None
    local = next((int(environment[name]) for name in _LOCAL_RANKS if environment.get(name, "").isdigit()), rank)
    return f"cuda:{(own[0] if own else local) % gpus}"


def only_texts(model: Any, texts: Sequence[str], prompt: str | None = None) -> list[Any]:
    """``texts`` for ``encode`` of a SentenceTransformer, as texts whatever they say: one that also takes images would
    open the file or address that a text is, or a picture in it (``data:image/...``).

    UserError: ``prompt``, of which the library counts the tokens by itself, is such a text.
    """
    if set(model.modalities) <= {"text"}:
        return list(texts)
    from sentence_transformers.base.modality import infer_modality

    if prompt and infer_modality(prompt, model.modalities) != "text":
        raise UserError(
            f"the prompt {prompt[:200]!r} is a path or an address, which a model of images would open; set another one"
            " with prompts"
        )
    return [{"text": text} for text in texts]


class TorchEncoder:
    """``(texts, kinds) -> [n, T]`` for ``embed_teacher``; the model is loaded when a text is first encoded."""

    def __init__(self, teacher: Teacher, folder: Path, prompts: Mapping[str, str], rank: int = 0):
        """``prompts``: the recipe's, by kind; they replace those of the folder. ``rank``: see :func:`torch_device`."""
        self.teacher, self.folder, self._rank = teacher, folder, rank
        self._prompts = {**read_prompts(folder)[0], **prompts}

    @functools.cached_property
    def _model(self) -> Any:
        refuse_without_torch(self.teacher)
        refuse_harmful_files(f"teachers.{self.teacher.name}", self.folder)
        import jax
        import torch
        from sentence_transformers import SentenceTransformer

        own = [device.local_hardware_id for device in jax.local_devices() if device.platform == "gpu"]
        try:
            with no_code(), shown_logs():
                model = SentenceTransformer(
                    str(self.folder),
                    device=torch_device(torch.cuda.device_count(), own, self._rank, os.environ),
                    local_files_only=True,
                    trust_remote_code=False,
                    model_kwargs={"dtype": getattr(torch, self.teacher.compute_dtype), "use_safetensors": True},
                )
        except Exception as error:
            raise UserError(
                f"teachers.{self.teacher.name}: sentence-transformers cannot load {self.folder} without running code"
                f" from it ({first_line(error)[:200]}); embed the texts where that code may run, then use jasper"
                " vectors import"
            ) from error
        if self.teacher.max_length is not None:
            model.max_seq_length = self.teacher.max_length
        return model

    def __call__(
        self,
        texts: Sequence[str],
        kinds: Sequence[str],
        prompts: Mapping[str, str] | None = None,
        *,
        show_progress: bool = False,
    ) -> np.ndarray:
        """``prompts``: by kind, in place of the teacher's own."""
        prompts = replace_prompts(self._prompts, prompts or {})
        out = np.empty((0, self.teacher.dim or 0), np.float32)
        for kind in sorted(set(kinds)):
            rows = [i for i, row_kind in enumerate(kinds) if row_kind == kind]
            # Always pass a prompt: without one, sentence-transformers adds the model's default prompt.
            prompt = prompt_of(prompts, kind)
            given = only_texts(self._model, [texts[i] for i in rows], prompt)
            vectors = self._model.encode(given, prompt=prompt, show_progress_bar=show_progress)
            if not len(out):
                out = np.empty((len(texts), vectors.shape[1]), np.float32)
            out[rows] = vectors
        return out
