"""Rows of TFDS and Hugging Face data sets, opened by name or folder, for texts and for pairs.

``key`` is the part of the recipe that names the data set, for error messages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jasper_jax.data.hf_files import SAVED, refuse_other_files, refuse_other_formats, refuse_saved_elsewhere
from jasper_jax.runtime.bounded import read_regular
from jasper_jax.runtime.errors import UserError, first_line, nearest
from jasper_jax.runtime.inside import refuse_links
from jasper_jax.runtime.json_text import parse_json
from jasper_jax.runtime.paths import user_path

_LARGEST_METADATA = 1 << 24


class Row(NamedTuple):
    """A record of a source and where it is, for error messages."""

    where: str
    values: Mapping[str, Any]


def require(columns: Sequence[str], existing: Collection[str], where: str) -> None:
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
    """UserError for whatever a library raises while it reads a row."""
    waiting = enumerate(rows)
    while True:
        try:
            number, values = next(waiting)
        except StopIteration:
            return
        except Exception as e:  # noqa: BLE001  (of Arrow, ArrayRecord, the network; there is no common class)
            raise UserError(f"{where}: the next row cannot be read ({first_line(e)})") from None
        yield Row(f"{where}, row {number}", values)


def tfds_rows(
    name: str, config: str | None, splits: Sequence[str], columns: Sequence[str], key: str, image: str | None = None
) -> Iterator[Row]:
    """The rows of a TFDS data set, read without TensorFlow; images, among them column ``image``, as encoded bytes."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming

    where = f"TFDS data set {name}"
    try:
        if (folder := user_path(name, key)).is_dir():
            refuse_links(folder)
            refuse_other_types(folder, key)
            builder: Any = tfds.builder_from_directory(str(folder))
        else:
            asked = f"{name}/{config}" if config else name
            builder_name, arguments = naming.parse_builder_name_kwargs(asked)
            if builder_name.namespace:
                raise UserError(
                    f"{key}: {where} is not one of TFDS itself, and its code would be fetched and run; prepare it"
                    " elsewhere and give its folder, or use hf"
                )
            if others := sorted(set(arguments) - {"config", "version"}):
                raise UserError(
                    f"{key}: {where} sets {', '.join(others)} of its builder, which may name any folder; give"
                    " name/config:version, or the folder of a prepared data set"
                )
            builder = tfds.builder(asked)
            builder.download_and_prepare(file_format="array_record")
        features = builder.info.features
        require(columns, list(features), where)
        decoders = skip_images(features)
        splits = _pick_splits(splits, list(builder.info.splits), where, key)
        sources = {split: builder.as_data_source(split=split, decoders=decoders) for split in splits}
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"{key}: no {where}; give a builder's name or the folder of a prepared data set") from None
    except UserError:
        raise
    except Exception as e:  # noqa: BLE001  (TFDS reads a folder from elsewhere; errors of protobuf and of types too)
        raise UserError(
            f"{key}: {where} cannot be read ({first_line(e)}); without TensorFlow only ArrayRecord can be read: "
            f"prepare it elsewhere with file_format='array_record', and give its folder"
        ) from None
    for split, rows in sources.items():
        yield from _numbered(f"{where}, split {split}", rows)


def skip_images(feature: Any) -> Any:
    """Decoders, nested as ``feature``, that leave each image of it encoded; None: it has none. TFDS would decode those
    of all columns without bounds, an EPS by another program."""
    from tensorflow_datasets import decode, features

    if isinstance(feature, features.FeaturesDict):
        nested = {name: skip_images(part) for name, part in feature.items()}
        return {name: decoders for name, decoders in nested.items() if decoders is not None} or None
    if isinstance(feature, features.Sequence | features.Dataset):
        return skip_images(feature.feature)
    if not isinstance(feature, features.Image):
        return None
    skip: Any = decode.SkipDecoding()
    skip.decode_batch_example_np = skip.decode_ragged_example_np = skip.decode_example_np  # of lists, which it lacks
    return skip


_OWN_TYPE = re.compile(r"tensorflow_datasets\.core\.features\.\w+(\.\w+)*", re.ASCII)
_NAMING = ("name", "filepathTemplate", "filepath_template")
"""Keys of a split from which the names of its files are made; the data set's ``name`` goes into them, too."""
_TYPE_KEYS = ("type", "pythonClassName", "python_class_name")


def refuse_other_types(folder: Path, key: str) -> None:
    """UserError: ``features.json`` names a type that is not TFDS's own (its module would be imported and run), or
    ``dataset_info.json`` names files that are not in the folder."""
    path = folder / "dataset_info.json"
    try:
        info = parse_json(read_regular(path, _LARGEST_METADATA))
        path = folder / "features.json"
        waiting = [parse_json(read_regular(path, _LARGEST_METADATA))]
    except FileNotFoundError:
        return  # which TFDS says
    except (OSError, ValueError) as e:
        raise UserError(f"{key}: {path}: cannot be read ({first_line(e)}); prepare the data set again") from None
    info = info if isinstance(info, dict) else {}
    splits = [split for split in info.get("splits") or [] if isinstance(split, dict)]
    for name in (info.get("name"), *(split.get(k) for split in splits for k in _NAMING)):
        if isinstance(name, str) and {"/", "\\"} & set(name):
            raise UserError(
                f"{key}: {folder / 'dataset_info.json'}: the files {name!r} are not in the data set's folder;"
                " prepare the data set again"
            )
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
    folder = user_path(name, key)
    saved = any((folder / file).exists() for file in SAVED)
    try:
        if folder.is_dir():
            refuse_links(folder)
        if saved:
            refuse_saved_elsewhere(folder, key)
            data: Any = datasets.load_from_disk(str(folder))
        else:
            # By its full path: the library takes "pandas" for its reader of pickles, and "csv" for the current folder.
            own = str(folder.resolve()) if folder.is_dir() else name
            builder = datasets.load_dataset_builder(own, name=config)
            refuse_other_formats(builder, where, key)
            refuse_other_files(builder.config.data_files or {}, folder, name, key)
            data = builder.as_streaming_dataset()
    except UserError:
        raise
    except Exception as e:  # noqa: BLE001  (the library parses files of others; errors of YAML, Arrow and types too)
        raise UserError(f"{key}: {where} cannot be read ({first_line(e)})") from None
    existing: Any = data if isinstance(data, dict) else {str(data.split or "train"): data}
    splits = _pick_splits(splits, list(existing), where, key)
    for split in splits:
        if "[" in split:
            raise UserError(f"{key}: {where}: a slice ({split}) cannot be streamed; use limit instead")
    for split in splits:
        rows = existing[split]
        if rows.features is not None:
            require([image] if image else [], list(rows.features), f"{key}: {where}")
            if isinstance(rows, datasets.Dataset):
                rows = rows.with_format(None).to_iterable_dataset()  # whatever its state.json says
            rows = rows.decode(False)  # images are decoded here within bounds, and other media not at all
        yield from _numbered(f"{where}, split {split}", rows)
