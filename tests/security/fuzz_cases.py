"""Hostile files by number: ``KINDS[kind](random.Random(f"{kind}/{number}"), place)`` makes one and reads it.

What is read or refused in one line is well; anything else is a finding. ``scripts/bench/fuzz.py`` tries many numbers in
processes of their own (``python -m tests.security.fuzz_cases KIND FIRST COUNT PLACE``); those that found something are
tests (``test_fuzz_seeds.py``).
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.security.fuzz_changes import hostile_json, read_or_refused, spoilt
from tests.security.fuzz_records import RECORDS

SECONDS = 90
"""Of a case."""
GROWTH = 1 << 30
"""Bytes by which a case may grow the process."""
# ------------------------------------------------------------------------------------------------ kinds

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"max_position_embeddings": 20, "type_vocab_size": 2},
    "qwen2": {"num_key_value_heads": 1, "head_dim": 8, "is_causal": False, "rope_scaling": {"rope_type": "default"}},
    "modernbert": {"local_attention": 8, "layer_types": ["full_attention"]},
    "gte": {"max_position_embeddings": 32},
}


def tokenizer_tree() -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+"}, "behavior": "Isolated", "invert": False}
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [piece], "pair": [piece, piece], "special_tokens": {}}
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "a": 2, "b": 3, " ": 4}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [{"id": 0, "content": "[UNK]", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, replace]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]},
        "post_processor": template,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }  # fmt: skip


def model_folder(place: Path, family: str) -> Path:
    """A folder with all the files of a model, all weights 0; made once."""
    from jasper_jax.encoders.registry import encoder_from_config
    from jasper_jax.encoders.safetensors import write_safetensors
    from jasper_jax.encoders.weights import save
    from jasper_jax.parameters.trees import unflatten

    folder = place / family
    if folder.is_dir():
        return folder
    encoder = encoder_from_config({"model_type": family, **SIZES, **FAMILIES[family]})
    zeros = {path: np.zeros(shape, np.float32) for path, shape in encoder.shapes().items()}
    save(unflatten(zeros), encoder, folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    steps = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
             for i, (path, kind) in enumerate(kinds.items())]  # fmt: skip
    files: dict[str, Any] = {
        "modules.json": steps,
        "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
        "2_Dense/config.json": {"in_features": 16, "out_features": 8, "bias": True,
                                "activation_function": "torch.nn.modules.linear.Identity"},
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "default_prompt_name": None},
        "tokenizer.json": tokenizer_tree(),
        "tokenizer_config.json": {"model_max_length": 16, "pad_token": "[PAD]", "unk_token": "[UNK]",
                                  "tokenizer_class": "PreTrainedTokenizerFast"},
    }  # fmt: skip
    for name, tree in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(tree))
    dense = {"linear.weight": np.zeros((8, 16), np.float32), "linear.bias": np.zeros(8, np.float32)}
    write_safetensors(folder / "2_Dense" / "model.safetensors", dense)
    return folder


def models(rng: random.Random, place: Path) -> None:
    """A file of a model folder is wrong."""
    from jasper_jax.encoders.folder import read_model_folder
    from jasper_jax.encoders.registry import encoder_from_config
    from jasper_jax.encoders.tokenization import Tokenizer
    from jasper_jax.encoders.weights import check_params

    folder = model_folder(place, rng.choice(list(FAMILIES)))
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "tokenizer.json"))
    whole = path.read_bytes()
    path.write_bytes(hostile_json(rng, json.loads(whole)) if path.suffix == ".json" else spoilt(rng, whole))
    try:
        with read_or_refused():
            read = read_model_folder(folder)
            check_params(read.encoder_path, encoder_from_config(read.hf_config))
            Tokenizer.load(read.encoder_path, read.max_length, lower_case=read.lower_case).encode(["a b", ""])
    finally:
        path.write_bytes(whole)


def tokenizers(rng: random.Random, place: Path) -> None:
    """A tokenizer.json is wrong; the trial of one is in a process of its own."""
    from jasper_jax.encoders.tokenization import Tokenizer

    folder = place / "tokenizer"
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes(hostile_json(rng, tokenizer_tree()))
    with read_or_refused():
        Tokenizer.load(folder).encode(["a b", "", "``a``" * 50, "é" * 9])


def archives(rng: random.Random, place: Path) -> None:
    """A text file, a table or a tar, packed and damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jasper_jax.data.image_files import webdataset_pairs
    from jasper_jax.data.image_log import SourceLog
    from jasper_jax.data.rows import csv_rows, jsonl_rows, parquet_rows
    from jasper_jax.recipe.config_sources import ImageSource
    from jasper_jax.runtime.text_files import numbered_lines

    pack: Callable[[bytes], bytes] = rng.choice([bytes, gzip.compress, bz2.compress, lzma.compress])
    kind = rng.choice(["lines", "jsonl", "csv", "tar", "parquet"])
    path = place / f"archive.{kind}"
    if kind == "parquet":
        size = rng.choice([1, 50, 3000])
        texts = ["x" * rng.choice([0, 5, 10**5 if size < 99 else 99])] * size
        column = pa.array([[text] * rng.choice([0, 1, 50]) for text in texts] if rng.random() < 0.5 else texts)
        pq.write_table(pa.table({"text": column}), path, compression=rng.choice(["none", "snappy", "zstd", "brotli"]),
                       use_dictionary=rng.random() < 0.5, data_page_version=rng.choice(["1.0", "2.0"]))  # fmt: skip
        data = path.read_bytes()
    elif kind == "tar":
        out = io.BytesIO()
        with tarfile.open(None, "w", out, format=rng.choice([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])) as tar:
            for i in range(rng.randrange(6)):
                name = rng.choice([f"{i // 2}", "../x", "x" * 300, "\x1b[2J", "/etc/passwd"])
                member = tarfile.TarInfo(f"{name}.{rng.choice(['png', 'txt', 'json'])}")
                member.size = rng.choice([0, 10, 10**6])
                tar.addfile(member, io.BytesIO(bytes(member.size)))
        data = out.getvalue()
    else:
        line = rng.choice(['{"text": "a"}', "text,kind", '"', "a" * 10**6, "[" * 10**4, "1" * 10**4, "\0", "é"])
        data = "\n".join([line] * rng.choice([1, 3, 2000 if len(line) < 99 else 3])).encode()
    path.write_bytes(spoilt(rng, pack(spoilt(rng, data) if rng.random() < 0.5 else data)))
    with read_or_refused():
        if kind == "tar":
            log = SourceLog(ImageSource(webdataset=str(path)), "images.sources[0]")
            for _ in webdataset_pairs(ImageSource(webdataset=str(path)), log):
                pass
        else:
            readers: dict[str, Callable[[Path], Iterator[Any]]] = {
                "lines": numbered_lines,
                "jsonl": jsonl_rows,
                "csv": csv_rows,
                "parquet": lambda path: parquet_rows(path, ["text"]),
            }
            for _ in readers[kind](path):
                pass


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "TGA", "QOI", "ICO", "EPS", "MPO", "PCX", "ICNS")


def images(rng: random.Random, place: Path) -> None:
    """A damaged image, for both readers."""
    from PIL import Image, features

    from jasper_jax.vision.images import open_image
    from tests.security.hostile_images import exported_code

    size = rng.choice([(1, 1), (7, 5), (64, 48)])
    image = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3))
    image = image.convert(rng.choice(["RGB", "RGBA", "L", "1", "P"]))
    kind = rng.choice([name for name in FORMATS if name not in ("AVIF", "WEBP") or features.check(name.lower())])
    out = io.BytesIO()
    try:
        image.save(out, kind)
    except (OSError, ValueError, KeyError):
        image.convert("RGB").save(out, kind)
    data = spoilt(rng, out.getvalue())
    with read_or_refused():
        open_image(data, "image", max_pixels=10**7)
    with read_or_refused(ValueError, OSError, SyntaxError, Image.DecompressionBombError, ArithmeticError, LookupError,
                         TypeError, AttributeError, RuntimeError, AssertionError, EOFError, __import__("struct").error,
                         __import__("zlib").error):  # fmt: skip
        _EXPORTED.setdefault("code", None)
        code = _EXPORTED["code"] = _EXPORTED["code"] or exported_code()
        code.opened(data)


_EXPORTED: dict[str, Any] = {}


def recipes(rng: random.Random, place: Path) -> None:
    """A recipe is wrong."""
    import yaml

    from jasper_jax.recipe.load import load_recipe
    from tests.tiny import recipe_tree

    tree = recipe_tree(place)
    dumped = yaml.safe_dump(tree).encode()
    data = hostile_json(rng, json.loads(json.dumps(tree, default=str))) if rng.random() < 0.7 else spoilt(rng, dumped)
    (place / "recipe.yaml").write_bytes(data)
    with read_or_refused():
        load_recipe(place / "recipe.yaml")


def data_sets(rng: random.Random, place: Path) -> None:
    """The files of a TFDS folder are wrong."""
    from jasper_jax.data.libraries import tfds_rows

    prefix = "tensorflow_datasets.core.features"
    inner = {"text": {"pythonClassName": f"{prefix}.text_feature.Text", "text": {}},
             "list": {"type": f"{prefix}.sequence_feature.Sequence", "content": "{}"}}  # fmt: skip
    top = {"pythonClassName": f"{prefix}.features_dict.FeaturesDict", "featuresDict": {"features": inner}}
    split = {"name": "train", "shardLengths": ["1"], "numBytes": "9", "filepathTemplate": "{DATASET}-{SPLIT}"}
    info = {"name": "d", "version": "1.0.0", "fileFormat": "array_record", "splits": [split], "moduleName": "x.y"}
    folder = place / "d"
    folder.mkdir(exist_ok=True)
    (folder / "features.json").write_bytes(hostile_json(rng, top))
    (folder / "dataset_info.json").write_bytes(hostile_json(rng, info))
    with read_or_refused():
        for _ in tfds_rows(str(folder), None, [], ["text"], "texts.sources"):
            break


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "models": models,
    "tokenizers": tokenizers,
    "archives": archives,
    "images": images,
    "recipes": recipes,
    "data_sets": data_sets,
    **RECORDS,
}


def main(kind: str, first: int, count: int, place: Path) -> None:
    """Run cases; the number of each is printed before it, so that a process that dies says of what."""
    import resource

    def too_long(*_: Any) -> None:
        raise RuntimeError(f"more than {SECONDS} s")

    os.environ["JASPER_CACHE"] = str(place / "cache")
    signal.signal(signal.SIGALRM, too_long)
    for number in range(first, first + count):
        print(f"\ncase {number}", flush=True)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(SECONDS)
        KINDS[kind](random.Random(f"{kind}/{number}"), place)
        signal.alarm(0)
        if (grown := (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10) > GROWTH:
            raise MemoryError(f"grew by {grown >> 20} MiB")
    shutil.rmtree(place / "cache", ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
