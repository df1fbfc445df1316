"""A flipped bit in every kind of file of a run folder: refused with the file's name, or harmless, never a wrong result.

Each kind is damaged in the state of a run in which the next command reads it. A refusal must be one line that names
the file; a command that goes on must end with the bits of the undisturbed run.
"""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from fault_campaign.inject import Moment
from fault_campaign.world import FORK, Row, World, _fresh

EMBEDDING = ("vectors/*/done-*.jsonl", "vectors/b/spec.json", "vectors/b/scales.json")
EMBEDDED = (
    "recipe.yaml",
    "texts/manifest.json",
    "texts/texts-train*",
    "texts/texts-held_out*",
    "texts/*_info.json",
    "texts/features.json",
    "vectors/*/manifest.json",
    "vectors/*/spec.json",
    "vectors/b/scales.json",
    "vectors/*/vectors-train*",
    "vectors/*/vectors-held_out*",
    "vectors/*/*_info.json",
    "vectors/*/features.json",
    "timings.json",
)
UNREAD = ("texts/*_info.json", "texts/features.json", "vectors/*/*_info.json", "vectors/*/features.json",
          "vectors/*/spec.json", "vectors/b/scales.json")  # fmt: skip
"""What a finished store keeps for other readers (TFDS), or has in its manifest, too."""
_PARTS = ("_CHECKPOINT_METADATA", "commit_success.txt", "state/_METADATA", "state/_sharding",
          "state/array_metadatas/*", "state/d/*", "state/manifest.ocdbt", "state/ocdbt.process_0/d/*",
          "state/ocdbt.process_0/manifest.ocdbt")  # fmt: skip
TRAINING = (
    "checkpoints/00-*/final.sha256.json",
    *(f"checkpoints/00-*/final/{part}" for part in _PARTS),
    "checkpoints/01-*/step-000005.sha256.json",
    *(f"checkpoints/01-*/step-000005/{part}" for part in _PARTS),
    "token_counts/*.npy",
    "metrics.jsonl",
)
FINISHED = ("checkpoints/start/state/ocdbt.process_0/d/*", "checkpoints/start.sha256.json", "evaluation/*.npy")
EXPORTED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "modules.json",
            "sentence_bert_config.json", "config_sentence_transformers.json", "jasper.json",
            "1_Pooling/config.json", "2_Dense_*/model.safetensors", "2_Dense_*/config.json")  # fmt: skip


WAYS_OUT = {
    ("embedding", "vectors/b/scales.json"): "vectors/b",
    ("embedded", "texts/manifest.json"): "texts",
    ("embedded", "texts/texts-train*"): "texts",
    ("embedded", "vectors/*/manifest.json"): "the file's folder",
    ("embedded", "vectors/*/vectors-train*"): "the file",
    ("training", "checkpoints/00-*/final/state/ocdbt.process_0/d/*"): "checkpoints/00-stage-1/final",
    ("training", "checkpoints/01-*/step-000005/state/ocdbt.process_0/d/*"): "checkpoints/01-stage-3/step-000005",
    ("training", "metrics.jsonl"): "the file",
    ("finished", "checkpoints/start/state/ocdbt.process_0/d/*"): "checkpoints/start",
}
"""What the message tells the user to delete, where that is tried, too: then the same command must end equal."""


def prepare(world: World, events: list[Moment]) -> None:
    """One run folder in each state: embedding under way, embedded, in the second stage, finished."""
    if (world.place / "state-finished").exists():
        return
    ledger = next(m for m in events if m.phase == "embedding" and "vectors/b/done" in m.what and m.n > 5)
    later = next(m for m in events if m.phase == "embedding" and m.n >= ledger.n + 4)
    world.call(world.place / "state-embedding", moment=later)
    world.call(world.place / "state-embedded", "embed")
    step = next(m for m in events if m.phase == "optimizer step" and (m.stage, m.step) == (1, 5))
    world.call(world.place / "state-training", moment=step, action="interrupt")  # it saves step 5
    shutil.copytree(world.undisturbed, world.place / "state-finished")


def flip(path: Path, rng: random.Random) -> str:
    """Flip a bit of a byte that is not the padding of a shard; says which."""
    data = bytearray(path.read_bytes())
    used = np.flatnonzero(np.frombuffer(bytes(data), np.uint8)) if "array_record" in path.name else range(len(data))
    position, bit = int(rng.choice(used)), rng.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {position} of {len(data)}"


def damage(world: World, state: str, pattern: str, number: int, seed: int, *command: str) -> list[Row]:
    """Flip a bit in a file of a copy of a state, run the command, and judge what it did."""
    rng = random.Random(f"{seed} {state} {pattern} {number}")
    run = world.place / _fresh(world.place / "flips", "run")
    shutil.copytree(world.place / f"state-{state}", run)
    files = sorted(p for p in run.glob(pattern) if p.is_file() and p.stat().st_size)
    if not files:
        return [Row("flipped bit", f"{pattern} ({state})", "no such file", False)]
    file = rng.choice(files)
    what = f"{file.relative_to(run)}, {flip(file, rng)} ({state}; {' '.join(command[:1]) or 'run'})"
    words = [word.replace("RUN", str(run)) for word in command]
    ended = world.call(run, *words)
    row = Row("flipped bit", what, *_judge(world, run, file, ended, words))
    if number == 0 and ended.code == 2 and (state, pattern) in WAYS_OUT:
        row = _follow(world, run, file, WAYS_OUT[state, pattern], row)
    if row.good:
        shutil.rmtree(run)
    return [row]


def _judge(world: World, run: Path, file: Path, ended, words: list[str]) -> tuple[str, bool]:
    said = ended.message().replace(str(run), "")
    if ended.code == 2:
        folder = file.relative_to(run).parts[0]
        named = any(str(p) in ended.output for p in (file, run / "recipe.yaml" if folder == "recipe.yaml" else file))
        named = named or (file.name == "recipe.yaml" and str(run) in ended.output) or str(file.parent) in ended.output
        return f"refused: {said}", named and "Traceback" not in ended.output
    if ended.code:
        return f"exit {ended.code}: {ended.output[-400:]}", False
    if words and words[0] == "encode":
        same = Path(words[-1]).read_bytes() == (world.place / "vectors.npy").read_bytes()
        return ("not used: equal vectors", True) if same else ("WRONG VECTORS", False)
    different = world.differences(run)
    if words and words[0] == "export":
        different = [name for name in different if name != "evaluation.json"]
    note = " (made again)" if file.suffix == ".npy" or not file.exists() else ""
    return (f"harmless{note}: the end is equal", True) if not different else (f"DIFFERENT: {different[:3]}", False)


def _follow(world: World, run: Path, file: Path, target: str, row: Row) -> Row:
    """Do what the message says, run again, and judge the end."""
    path = {"the file": file, "the file's folder": file.parent}.get(target, run / target)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = world.call(run)
    different = world.differences(run) if ended.code == 0 else [f"exit {ended.code}: {ended.output[-300:]}"]
    if file.name == "metrics.jsonl":
        different = [name for name in different if name != "losses in metrics.jsonl"]
    then = ", ".join(different) or "equal"
    return Row(
        row.kind, row.what, f"{row.outcome} -> deleted {path.relative_to(run)}: {then}", row.good and not different
    )


def sweep(world: World, pattern: str, number: int, seed: int) -> list[Row]:
    """Flip ``number`` bits of a shard, one after another, and read it each time: an error or the same records."""
    result = _fresh(world.place / "logs", "sweep")
    process = FORK.Process(target=_sweep, args=(world, pattern, number, seed, result))
    process.start()
    process.join()
    found, same, wrong = map(int, result.read_text().split()) if process.exitcode == 0 else (0, 0, -1)
    outcome = f"{found} refused, {same} read the same records (bytes that are not data), {wrong} read other records"
    return [Row("flipped bit", f"{number} single bits of {pattern}, read back", outcome, wrong == 0)]


def _sweep(world: World, pattern: str, number: int, seed: int, result: Path) -> None:
    from jasper_jax.data.texts import TextStore
    from jasper_jax.runtime.errors import UserError
    from jasper_jax.teachers.vectors import VectorStore

    run = result.with_name(result.name + ".run")
    shutil.copytree(world.undisturbed, run)
    rng = random.Random(f"{seed} {pattern}")
    [path] = run.glob(pattern)
    index = int(path.name.split("-")[-3])
    whole = path.read_bytes()
    texts = TextStore.open(run / "texts")

    def read() -> bytes:
        store = TextStore.open(run / "texts") if "texts" in pattern else VectorStore.open(path.parent, texts)
        rows = store.read_shard(store.shards[index])
        return rows[1].tobytes() if isinstance(rows, tuple) else repr(rows).encode()

    expected, found, same, wrong = read(), 0, 0, 0
    for _ in range(number):
        path.write_bytes(whole)
        flip(path, rng)
        try:
            equal = read() == expected
            same, wrong = same + equal, wrong + (not equal)
        except UserError as error:
            found, wrong = found + (str(path) in str(error)), wrong + (str(path) not in str(error))
    shutil.rmtree(run)
    result.write_text(f"{found} {same} {wrong}")


def tasks(world: World, events: list[Moment], seed: int) -> list:
    """Two bits of each kind of file, and many of each kind of shard."""
    prepare(world, events)
    texts = world.place / "questions.txt"
    texts.write_text("what is the old river\nthis machine repairs a map\n")
    encode = ("encode", "RUN/export", str(texts))
    world.call(
        world.undisturbed, "encode", str(world.undisturbed / "export"), str(texts), str(world.place / "vectors.npy")
    )
    found = [
        partial(sweep, world, f"{p}train.array_record-00001*", 400, seed)
        for p in ("texts/texts-", "vectors/a/vectors-")
    ]
    for number in range(2):
        # Files that nothing reads cost a whole run each: once is enough.
        embedded = [p for p in EMBEDDED if not number or p not in UNREAD]
        for state, patterns in {"embedding": EMBEDDING, "embedded": embedded, "training": TRAINING}.items():
            found += [partial(damage, world, state, pattern, number, seed) for pattern in patterns]
        found += [partial(damage, world, "finished", pattern, number, seed) for pattern in FINISHED]
        found.append(partial(damage, world, "finished", "evaluation.json", number, seed, "export"))
        found += [
            partial(damage, world, "finished", f"export/{name}", number, seed, *encode, "RUN/vectors.npy")
            for name in EXPORTED
        ]
    return found
