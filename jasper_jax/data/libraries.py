"""Rows of TFDS and Hugging Face data sets, opened by name or folder, for texts and for pairs.

``key`` is the part of the recipe that names the data set, for error messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.runtime.bounded import read_regular
from jasper_jax.runtime.errors import UserError, nearest
from jasper_jax.runtime.files import parse_json
from jasper_jax.runtime.paths import user_path

_LARGEST_METADATA = 1 << 24


class Row(NamedTuple):
    """A record of a source and where it is, for error messages."""

    where: str
    values: Mapping[str, Any]


def require(columns: Sequence[str], existing: Sequence[str], where: str) -> None:
    """UserError for the first of ``columns`` that does not exist."""
    for name in columns:
        if name not in existing:
            raise UserError(
                f"{where}: no column {name!r}; there are {', '.join(existing)}{nearest(name, list(existing))}"
            )


def _pick_splits(splits: Sequence[str], existing: list[str], where: str, key: str) -> list[str]:
    """``splits``, or the only existing one if empty."""
    if not splits and len(existing) > 1:
        raise UserError(f"{key}: {where} has the splits {', '.join(existing)}; choose with split")
    for name in splits:
        if name.split("[")[0] not in existing:
            raise UserError(f"{key}: {where} has no split {name!r}; there are {', '.join(existing)}")
    return list(splits) or existing


def _numbered(where: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(f"{where}, row {number}", values) for number, values in enumerate(rows))


def _first_line(e: Exception) -> str:
    return next(iter(str(e).strip().splitlines()), type(e).__name__)


def tfds_rows(
    name: str, config: str | None, splits: Sequence[str], columns: Sequence[str], key: str, image: str | None = None
) -> Iterator[Row]:
    """The rows of a TFDS data set, read without TensorFlow; column ``image`` as encoded bytes."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    where = f"TFDS data set {name}"
    try:
        if (folder := user_path(name, key)).is_dir():
            refuse_other_types(folder, key)
            builder: Any = tfds.builder_from_directory(str(folder))
        else:
            if naming.parse_builder_name_kwargs(name)[0].namespace:
                raise UserError(
                    f"{key}: {where} is not one of TFDS itself, and its code would be fetched and run; prepare it"
                    " elsewhere and give its folder, or use hf"
                )
            builder = tfds.builder(f"{name}/{config}" if config else name)
            builder.download_and_prepare(file_format="array_record")
        features = builder.info.features
        require(columns, list(features), where)
        encoded = image is not None and isinstance(features[image], tfds.features.Image)
        decoders = {image: tfds.decode.SkipDecoding()} if encoded else None
        splits = _pick_splits(splits, list(builder.info.splits), where, key)
        sources = {split: builder.as_data_source(split=split, decoders=decoders) for split in splits}
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"{key}: no {where}; give a builder's name or the folder of a prepared data set") from None
    except UserError:
        raise
    except Exception as e:  # noqa: BLE001  (TFDS reads a folder from elsewhere; errors of protobuf and of types too)
        raise UserError(
            f"{key}: {where} cannot be read ({_first_line(e)}); without TensorFlow only ArrayRecord can be read: "
            f"prepare it elsewhere with file_format='array_record', and give its folder"
        ) from None
    for split, rows in sources.items():
        yield from _numbered(f"{where}, split {split}", rows)


_OWN_TYPE = re.compile(r"tensorflow_datasets\.core\.features\.\w+(\.\w+)*", re.ASCII)
_TYPE_KEYS = ("type", "pythonClassName", "python_class_name")


def refuse_other_types(folder: Path, key: str) -> None:
    """UserError: ``features.json`` names a type that is not TFDS's own; TFDS would import its module, which is code."""
    path = folder / "dataset_info.json"
    try:
        read_regular(path, _LARGEST_METADATA)
        path = folder / "features.json"
        waiting = [parse_json(read_regular(path, _LARGEST_METADATA))]
    except FileNotFoundError:
        return  # which TFDS says
    except (OSError, ValueError) as e:
        raise UserError(f"{key}: {path}: cannot be read ({_first_line(e)}); prepare the data set again") from None
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # TFDS parses some strings again
            try:
                waiting.append(parse_json(value))
            except ValueError:
                continue
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            for name in (value.get(k) for k in _TYPE_KEYS):
                if isinstance(name, str) and not _OWN_TYPE.fullmatch(name):
                    raise UserError(
                        f"{key}: {path}: the type {name!r} is not TFDS's own, and reading it would run code; prepare"
                        " the data set again with types of tfds.features"
                    )


def datasets_library(key: str) -> Any:
    """The ``datasets`` library. UserError: it is not installed."""
    try:
        import datasets
    except ImportError:
        raise UserError(f"{key}: hf needs the datasets library: pip install 'jasper-jax[datasets]'") from None
    return datasets


def hf_rows(name: str, config: str | None, splits: Sequence[str], key: str, image: str | None = None) -> Iterator[Row]:
    """The rows of a data set on the hub (streamed) or in a folder; column ``image`` is not decoded."""
    datasets = datasets_library(key)
    where = f"Hugging Face data set {name}"
    try:
        folder = user_path(name, key)
        name = str(folder) if folder.is_dir() else name
        if any((folder / f).exists() for f in ("dataset_dict.json", "state.json")):
            data = datasets.load_from_disk(name)
        else:
            data = datasets.load_dataset(name, name=config, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        raise UserError(f"{key}: {where} cannot be read ({_first_line(e)})") from None
    existing: Any = data if isinstance(data, dict) else {str(data.split or "train"): data}
    splits = _pick_splits(splits, list(existing), where, key)
    for split in splits:
        if "[" in split:
            raise UserError(f"{key}: {where}: a slice ({split}) cannot be streamed; use limit instead")
    for split in splits:
        rows = existing[split]
        if image is not None and rows.features is not None:
            require([image], list(rows.features), f"{key}: {where}")
            if isinstance(rows.features[image], datasets.Image):
                rows = rows.cast_column(image, datasets.Image(decode=False))
        yield from _numbered(f"{where}, split {split}", rows)
