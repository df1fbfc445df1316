"""Data sets of TFDS and of the ``datasets`` library, opened by name or folder, for texts and for pairs.

``key`` is the part of the recipe that names the data set, for error messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jasper_jax.runtime.errors import UserError, nearest


def require(wanted: Sequence[str], there: Sequence[str], where: str) -> None:
    """UserError for the first column that is wanted and not there."""
    for name in wanted:
        if name not in there:
            raise UserError(f"{where}: no column {name!r}; there are {', '.join(there)}{nearest(name, list(there))}")


def pick_splits(asked: Sequence[str], there: list[str], where: str, key: str) -> list[str]:
    """The splits asked for; with none asked, the only one there is."""
    if not asked and len(there) > 1:
        raise UserError(f"{key}: {where} has the splits {', '.join(there)}; choose with split")
    for name in asked:
        if name.split("[")[0] not in there:
            raise UserError(f"{key}: {where} has no split {name!r}; there are {', '.join(there)}")
    return list(asked) or there


def _first_line(e: Exception) -> str:
    return next(iter(str(e).strip().splitlines()), type(e).__name__)


def tfds_splits(
    name: str,
    config: str | None,
    asked: Sequence[str],
    columns: Sequence[str],
    key: str,
    encoded: Sequence[str] = (),
) -> tuple[str, Mapping[str, Any]]:
    """The splits of a TFDS data set as data sources, without TensorFlow, and the data set's name for people.

    Columns of ``encoded`` that are images come as the bytes they are stored as.
    """
    import tensorflow_datasets as tfds

    where = f"TFDS data set {name}"
    try:
        if Path(name).is_dir():
            builder: Any = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(f"{name}/{config}" if config else name)
            builder.download_and_prepare(file_format="array_record")
        features = builder.info.features
        require(columns, list(features), where)
        images = [column for column in encoded if isinstance(features[column], tfds.features.Image)]
        decoders = {column: tfds.decode.SkipDecoding() for column in images} or None
        splits = pick_splits(asked, list(builder.info.splits), where, key)
        return where, {s: builder.as_data_source(split=s, decoders=decoders) for s in splits}
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"{key}: no {where}; give a builder's name or the folder of a prepared one") from None
    except (ImportError, NotImplementedError, ValueError, OSError, AssertionError) as e:
        raise UserError(
            f"{key}: {where} cannot be read ({_first_line(e)}); without TensorFlow only ArrayRecord can be: "
            f"prepare it once elsewhere with file_format='array_record', and give its folder"
        ) from None


def datasets_library(key: str) -> Any:
    """The ``datasets`` library. UserError: it is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{key}: hf needs the datasets library: pip install 'jasper-jax[datasets]'") from None
    return datasets


def hf_splits(name: str, config: str | None, asked: Sequence[str], key: str) -> tuple[str, Mapping[str, Any]]:
    """The splits of a data set on the hub (streamed) or in a folder, and the data set's name for people."""
    datasets = datasets_library(key)
    where = f"Hugging Face data set {name}"
    try:
        if any((Path(name) / f).exists() for f in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset(name, name=config, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        raise UserError(f"{key}: {where} cannot be read ({_first_line(e)})") from None
    there: Any = found if isinstance(found, dict) else {str(found.split or "train"): found}
    splits = pick_splits(asked, list(there), where, key)
    for split in splits:
        if "[" in split:
            raise UserError(f"{key}: {where}: a slice ({split}) cannot be streamed; use limit instead")
    return where, {split: there[split] for split in splits}
