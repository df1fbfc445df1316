"""Hostile recipes with overrides, pairs, weights, adapters, and the records of a run that somebody else has written."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.security.fuzz_changes import ODD, hostile_json, paths_of, read_or_refused, spoilt


def dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def overrides(rng: random.Random, place: Path) -> None:
    """A recipe with aliases and references to other keys, and overrides of it."""
    import yaml

    from jasper_jax.recipe.load import dump_recipe, load_recipe
    from tests.tiny import recipe_tree

    tree = json.loads(json.dumps(recipe_tree(place), default=str))
    keys = [path for path in paths_of(tree) if path]

    def strange(key: str) -> str:
        return rng.choice(
            [f"${{{key}}}", f"x${{{key}}}y${{{key}}}", "${", "${a.b}", f"${{{key}.0}}", "$HOME", "~x", "[a"]
        )

    for _ in range(rng.randrange(3)):
        path, other = rng.choice(keys), dotted(rng.choice(keys))
        node: Any = tree
        for key in path[:-1]:
            node = node[key]
            if not isinstance(node, dict | list):
                break
        else:
            if path[-1] in node if isinstance(node, dict) else path[-1] < len(node):
                node[path[-1]] = strange(other)
    text = yaml.safe_dump(tree)
    if rng.random() < 0.3:
        lines = text.splitlines()
        line = rng.randrange(len(lines))
        lines[line] += rng.choice(
            [" &a", " *a", "\n<<: *a", " !!python/name:os.system", " [*a, *a]", " ? *a", " {<<: *a}"]
        )
        text = "\n".join([rng.choice(["a: &a [x, x]", "a: &a {b: c}", "seed: &a 3", ""]), *lines])
    (place / "recipe.yaml").write_bytes(spoilt(rng, text.encode()) if rng.random() < 0.2 else text.encode())
    given = []
    for _ in range(rng.randrange(3)):
        key = dotted(rng.choice(keys))
        key = rng.choice(
            [key, key.replace(".", "["), f"{key}.x", f"{key}[0]", f"{key}.-1", "a" * 9999, ".", "[", "a." * 3000]
        )
        value = rng.choice(
            [strange(key), json.dumps(rng.choice(ODD)), "{a: [", "[" * 2000, "*a", "&a [*a]", "", "\n- x"]
        )
        given.append(f"{key}{rng.choice(['=', '=', '==', ''])}{value}")
    with read_or_refused():
        recipe = load_recipe(place / "recipe.yaml", given)
        (place / "again.yaml").write_text(dump_recipe(recipe), "utf-8")
        assert load_recipe(place / "again.yaml") == recipe, "read back, it is another recipe"


def pairs(rng: random.Random, place: Path) -> None:
    """A file of labelled pairs."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jasper_jax.data.pair_sources import read_pairs
    from jasper_jax.recipe.config_sources import PairSource

    kind = rng.choice(["jsonl", "csv", "parquet"])
    path = place / f"pairs.{kind}"
    row: dict[str, Any] = {"query": "q", "passage": "p", "negatives": ["n", "m"], "score": 0.5}
    if kind == "jsonl":
        data = b"\n".join(hostile_json(rng, row) for _ in range(rng.randrange(1, 4)))
    elif kind == "csv":
        cells = [rng.choice(["q", '"', '"a\nb"', "0.5", "nan", "1e999", "", "\0", "é", "=1+1"]) for _ in range(12)]
        data = "\n".join(["query,passage,negatives,score", *(",".join(cells[i : i + 4]) for i in (0, 4, 8))]).encode()
        data = spoilt(rng, data) if rng.random() < 0.5 else data
    else:
        columns = {
            name: rng.choice([["a"], [None], [1], [b"\xff"], [["a", None]], [[]], [{"a": 1}], [True], [0.5]])
            for name in row
        }
        pq.write_table(pa.table(columns), path)
        data = path.read_bytes() if rng.random() < 0.7 else spoilt(rng, path.read_bytes())
    pack: Callable[[bytes], bytes] = rng.choice([bytes, gzip.compress, bz2.compress]) if kind != "parquet" else bytes
    path.write_bytes(pack(pack(data)) if rng.random() < 0.2 else pack(data))
    options = {key: rng.choice([None, key]) for key in ("negatives", "score")}
    with read_or_refused():
        for _ in read_pairs(PairSource(**{kind: str(path)}, **options), judged=rng.random() < 0.3):
            pass


def header(rng: random.Random, tensors: dict[str, np.ndarray]) -> bytes:
    """A safetensors file whose header says something else than it has."""
    entries, data = {}, b""
    for name, tensor in tensors.items():
        end = len(data) + tensor.nbytes
        entries[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), end]}
        data += tensor.tobytes()
    text = hostile_json(rng, {**entries, "__metadata__": {"format": "pt"}})
    said = rng.choice([len(text)] * 8 + [0, len(text) + 1, 2**63, 2**64 - 1])
    return struct.pack("<Q", said) + text + (data if rng.random() < 0.9 else data[: rng.randrange(len(data))])


def weights(rng: random.Random, place: Path) -> None:
    """Weights whose header, or whose index of shards, says something else than they have."""
    from jasper_jax.encoders.safetensors import INDEX, SINGLE, open_checkpoint

    folder = place / "weights"
    folder.mkdir(exist_ok=True)
    tensors = {"a.weight": np.ones((3, 4), np.float32), "b": np.ones(2, np.float32)}
    file = "one.safetensors" if (sharded := rng.random() < 0.5) else SINGLE
    (folder / SINGLE).unlink(missing_ok=True)
    (folder / file).write_bytes(header(rng, tensors))
    index = {"metadata": {"total_size": 56}, "weight_map": dict.fromkeys(tensors, "one.safetensors")}
    (folder / INDEX).write_bytes(hostile_json(rng, index))
    if sharded and rng.random() < 0.7:
        (folder / file).write_bytes(header(random.Random(0), tensors))
    with read_or_refused():
        for name, tensor in open_checkpoint(folder).items():
            _ = tensor.shape(name), tensor.dtype(name), tensor[name]
            if len(tensor.shape(name)) > 0:
                tensor.rows(name, 0, 1)


def adapters(rng: random.Random, place: Path) -> None:
    """A LoRA adapter beside the weights, or without them."""
    from jasper_jax.encoders.lora import CONFIG, WEIGHTS, merge_adapter, refuse_adapter_alone
    from jasper_jax.encoders.safetensors import open_checkpoint, write_safetensors

    folder = place / "adapter"
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", {"x.q.weight": np.ones((6, 5), np.float32)})
    a, b = (f"base_model.model.x.q.lora_{side}.weight" for side in "AB")
    settings = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": False,
        "bias": "none",
        "rank_pattern": {},
        "init_lora_weights": True,
        "base_model_name_or_path": "some/base",
        "target_modules": ["q"],
        "use_dora": False,
    }
    good = json.dumps(settings).encode()
    (folder / "config.json").write_text("{}")
    (folder / CONFIG).write_bytes(hostile_json(rng, settings) if rng.random() < 0.6 else good)
    rank = rng.choice([2, 2, 2, 2, 0, 1, 7])
    tensors = {a: np.ones((rank, 5), np.float32), b: np.ones((6, rank), np.float32)}
    if rng.random() < 0.4:
        (folder / WEIGHTS).write_bytes(header(rng, tensors if rank else {**tensors, "c": np.ones(1, np.float32)}))
    else:
        odd = rng.choice([a, b, "lora_A.weight", "x.lora_A.weight", "x.q.lora_A.weight", "q.lora_magnitude_vector"])
        kind = rng.choice([np.float32, np.float16, np.int64, np.bool_])
        if rng.random() < 0.4:
            tensors[odd] = np.ones(rng.choice([(), (2, 5), (6, 2), (2, 2, 2), (0, 5)]), kind)
        write_safetensors(folder / WEIGHTS, tensors)
    with read_or_refused(), np.errstate(all="ignore"):
        refuse_adapter_alone(folder)
        for name, tensor in merge_adapter(folder, open_checkpoint(folder)).items():
            _ = tensor[name], tensor.rows(name, 0, 1)


def records(rng: random.Random, place: Path) -> None:
    """What a run, an export or a checkpoint of somebody else says of itself."""
    from jasper_jax.checkpoints.export_marker import MARKER, own_files, refuse_damaged
    from jasper_jax.checkpoints.mirror import _files
    from jasper_jax.checkpoints.seal import sums_path, verify
    from jasper_jax.data.pair_table import NAME, read_tables
    from jasper_jax.data.texts import TextStore
    from jasper_jax.evaluation.evaluation import from_json
    from jasper_jax.evaluation.plots import plot_training
    from jasper_jax.evaluation.tables import console_table, markdown_table
    from jasper_jax.runtime.console import new_console
    from jasper_jax.runtime.files import sealed, sha256_file
    from jasper_jax.runtime.timings import Timings
    from jasper_jax.training.events import read_events

    folder = place / "record"
    folder.mkdir(exist_ok=True)
    kind = rng.choice(["marker", "seal", "store", "evaluation", "metrics", "timings", "table"])
    sums = {"config.json": "0" * 64, "1_Pooling/config.json": "0" * 64}

    def written(name: str, tree: Any) -> Path:
        data = hostile_json(rng, tree)
        if rng.random() < 0.3 and isinstance(value := _json(data), dict):
            with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair, of which no checksum is made
                data = json.dumps(sealed(value)).encode()
        (folder / name).write_bytes(data)
        return folder / name

    with read_or_refused():
        if kind == "marker":
            written(MARKER, {"made_by": "jasper_jax", "format": 1, "sha256": sums, "created": "2030"})
            own_files((folder / MARKER).read_bytes())
            refuse_damaged(folder)
        elif kind == "seal":
            (folder / "start").mkdir(exist_ok=True)
            for name in _files(written(sums_path(folder / "start").name, sums).read_bytes()) or {}:
                assert (folder / "start" / name).resolve().is_relative_to(folder.resolve()), "out of the checkpoint"
            verify(folder / "start")
        elif kind == "store":
            shard = {"split": "train", "index": 0, "file": "texts-train.array_record-00000-of-00001", "rows": 1}
            shard |= {"bytes": 9, "sha256": "0" * 64}
            written("manifest.json", {"format": 1, "splits": {"train": 1}, "shards": [shard], "fingerprint": "0" * 64,
                                      "recipe": {}, "pairs": None, "counts": {}})  # fmt: skip
            TextStore.open(folder)
        elif kind == "evaluation":
            at = {"value": 0.5, "low": 0.4, "high": 0.6}
            counts = {"queries": 3, "passages": 4, "missing": 0}
            score = {**counts, **dict.fromkeys(("ndcg10", "recall1", "recall10", "mrr10"), at)}
            row = {"provider": "p", "role": "student", "dim": 8, "head": "h", "retrieval": {"t": score}}
            evaluation = from_json(written("evaluation.json", {"format": 1, "rows": [row], "metadata": {"tests": {}}}))
            markdown_table(evaluation)
            new_console(io.StringIO()).print(console_table(evaluation))
        elif kind == "metrics":
            event = {"event": "step", "stage": "s", "stage_index": 0, "step": 1, "global_step": 1, "loss": 1.0,
                     "terms": {"h/cosine": 1.0}, "time": 1.0, "seconds": 0.1}  # fmt: skip
            other = {"event": "evaluation", "stage_index": 0, "step": 1, "global_step": 1, "loss": 1.0}
            lines = [hostile_json(rng, event), json.dumps(event).encode(), hostile_json(rng, other)]
            (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
            read_events(folder / "metrics.jsonl")
            if rng.random() < 0.2:
                plot_training(folder / "metrics.jsonl", folder / "training.png")
        elif kind == "timings":
            written("timings.json", {"embed": 1.5, "train": 20})
            new_console(io.StringIO()).print(Timings(folder).table())
        else:
            out = io.BytesIO()
            names = ("query", "passage", "negatives", "score", "source")
            arrays = {f"{split}/{name}": np.zeros((2, 1) if name == "negatives" else 2, np.int32)
                      for split in ("train", "held_out") for name in names}  # fmt: skip
            rng.choice([np.savez, np.savez_compressed])(out, allow_pickle=False, **arrays)
            (folder / NAME).write_bytes(spoilt(rng, out.getvalue()))
            read_tables(folder, sha256_file(folder / NAME), "make it again")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def vectors(rng: random.Random, place: Path) -> None:
    """Vectors that somebody else has made, with their texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jasper_jax.teachers.vector_import import vectors_of
    from jasper_jax.teachers.vectors import VectorSpec

    spec = VectorSpec({"name": "t"}, {}, "mean", 8, 4, "float32")
    if rng.random() < 0.6:
        path, out = place / "vectors.npy", io.BytesIO()
        shape = rng.choice([(2, 4), (2, 4), (2, 3), (4,), (2, 4, 1), (0, 4), (2, 0)])
        np.save(
            out,
            np.ones(
                shape, rng.choice([np.float32, np.float16, np.float64, np.int32, np.complex64, ">f4", np.longdouble])
            ),
        )
        path.write_bytes(spoilt(rng, out.getvalue()) if rng.random() < 0.4 else out.getvalue())
        first = {"text": "a", "kind": "query"}
        texts = json.dumps(first).encode() if rng.random() < 0.5 else hostile_json(rng, first)
        texts += b'\n{"text": "b"}\n'
        (place / "vectors.jsonl").write_bytes(texts)
    else:
        path = place / "vectors.parquet"
        lists = rng.choice(
            [[[1.0] * 4] * 2, [[1.0] * 3, [1.0]], [[], []], [None, [1.0] * 4], [[1, 2], [3, 4]], ["a", "b"]]
        )
        texts = rng.choice([["a", "b"], ["a", None], [1, 2], [b"a", b"\xff"], [["a"], ["b"]]])
        kinds = rng.choice([["query", None], ["x", "y"], [1, 2]])
        pq.write_table(pa.table({"text": texts, "embedding": lists, "kind": kinds}), path)
        if rng.random() < 0.5:
            path.write_bytes(spoilt(rng, path.read_bytes()))
    with read_or_refused(), np.errstate(all="ignore"):
        vectors_of([path], ["a", "b"], ["query", "passage"], spec)


RECORDS: dict[str, Callable[[random.Random, Path], None]] = {
    "overrides": overrides,
    "pairs": pairs,
    "weights": weights,
    "adapters": adapters,
    "records": records,
    "vectors": vectors,
}
