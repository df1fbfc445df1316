"""Models of the Hugging Face hub: safe files only, in the hub's own cache, with one-line errors."""

from __future__ import annotations

from pathlib import Path

from jasper_jax.assets.catalogue import Unavailable

HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""What is downloaded: no pickles, no code."""
HUB_SKIPS = ["onnx/*", "openvino/*", "original/*"]


def is_cached(repo: str, revision: str | None) -> bool:
    """Whether the hub's own cache holds a model's config.json."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str)


def snapshot(repo: str, revision: str | None, *, progress: bool = True) -> Path:
    """The folder of a model in the hub's cache, downloaded if missing (not with ``HF_HUB_OFFLINE=1``).

    Raises:
      Unavailable: with the reason.
    """
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not progress and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    at = f"{repo}@{revision}" if revision else repo
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIPS)
    except errors.GatedRepoError as error:
        raise Unavailable(f"hub {at}: accept its terms on its page, then `hf auth login`") from error
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
        if quiet:
            enable_progress_bars()
    return Path(folder)
