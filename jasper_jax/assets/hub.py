"""Models of the Hugging Face hub: safe files only, in the hub's own cache, with one-line errors.

A file of that cache is a link to one that is named by the hash of its content, which is compared when a process first
uses it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from jasper_jax.assets.catalogue import Unavailable
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import sha256_once

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
      UserError: a file has changed since it was downloaded.
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
    refuse_changed(Path(folder))
    return Path(folder)


def refuse_changed(folder: Path) -> None:
    """UserError: the content of a file of a snapshot is not what the name of its blob says.

    Blobs are named by sha256, or small ones by git's sha1. Where the hub's cache has no links, as on Windows, there are
    no such names, and nothing is compared.
    """
    for path in sorted(folder.rglob("*")):
        blob = path.resolve()
        if not path.is_symlink() or not path.is_file() or blob.parent.name != "blobs":
            continue
        hashes = {64: sha256_once, 40: _git_sha1}
        if (hashed := hashes.get(len(blob.name))) and hashed(blob) != blob.name:
            raise UserError(f"{path}: has changed since it was downloaded; delete {blob} and run again")


def _git_sha1(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
