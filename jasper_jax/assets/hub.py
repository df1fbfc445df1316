"""Models of the Hugging Face hub: their safe files, in the hub's own cache; its errors in one line."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.assets.catalogue import Unavailable

HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""What is taken from the hub: no pickles, no code."""
HUB_SKIPS = ["onnx/*", "openvino/*", "original/*"]


def is_cached(repo: str, revision: str | None) -> bool:
    """Whether the hub's own cache holds a model's config.json."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str)


def snapshot(repo: str, revision: str | None, *, progress: bool = True) -> Path:
    """The folder of a model of the Hugging Face hub, in its own cache (``HF_HUB_OFFLINE=1``: from there).

    Takes JSON, text, tokenizer and safetensors files. Errors: ``Unavailable``.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quieten = not progress and not are_progress_bars_disabled()
    if quieten:
        disable_progress_bars()
    at = f"{repo}@{revision}" if revision else repo
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPS)
    except errors.GatedRepoError as error:
        raise Unavailable(f"hub {at}: its terms must be accepted on its page, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise Unavailable(f"hub {at}: there is no such model, or it is private (`hf auth login`)") from error
    except errors.RevisionNotFoundError as error:
        raise Unavailable(f"hub {at}: there is no such revision") from error
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:  # pyright: ignore[reportPrivateImportUsage]
        reason = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if constants.HF_HUB_OFFLINE:
            reason = ["HF_HUB_OFFLINE is set, and the hub's cache does not have it"]
        raise Unavailable(f"hub {at}: {reason[0]}") from error
    finally:
        if quieten:
            enable_progress_bars()
    return Path(folder)
