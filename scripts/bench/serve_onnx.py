"""An exported folder's ONNX files beside the student itself, and docs/results/onnx.md.

    jasper export FOLDER --onnx
    python scripts/bench/serve_onnx.py FOLDER --node FOLDER_WITH_NODE_MODULES --optimum PYTHON [--write]

``--node``: where ``npm install @huggingface/transformers`` was run. ``--optimum``: the interpreter of an environment
with ``sentence-transformers[onnx]``, for its ``backend="onnx"``. Scores are nDCG@10 on Reddit (400 passages, two
questions each). Times are CPU time of one core, so that other work on the machine counts little; programs take turns,
and the least time of each counts. Costs five minutes of CPU time for six layers of width 384.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer

from jasper_jax.assets.corpora import RetrievalTest, retrieval_test, subset
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.export.onnx_folder import FOLDER, MODEL, QUANTIZED
from jasper_jax.export.onnx_in_torch import SENTENCE, outputs_by_dim
from jasper_jax.export.onnx_session import OnnxModel
from jasper_jax.teachers.vectors import normalize_rows

PAGE = Path(__file__).parents[2] / "docs" / "results" / "onnx.md"
FLAGS = {"avx2", "avx512f", "avx512_vnni"}
"""Of a processor: avx512_vnni multiplies int8 numbers."""
NODE = Path(__file__).with_suffix(".mjs")
OPTIMUM = """
import json, sys, warnings
warnings.simplefilter("ignore")
from importlib.metadata import version
from sentence_transformers import SentenceTransformer
folder, file, texts, out = sys.argv[1:]
model = SentenceTransformer(folder, backend="onnx", device="cpu", model_kwargs={"file_name": file})
packages = ("sentence-transformers", "transformers", "optimum-onnx")
names = ", ".join(f"{name} {version(name)}" for name in packages)
vectors = model.encode(json.load(open(texts)), prompt="", batch_size=8).tolist()
json.dump({"version": names, "vectors": vectors}, open(out, "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--node", type=Path)
    parser.add_argument("--optimum")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    test = subset(retrieval_test("squad-shifts", "reddit"), 400, 2)
    student = Embedder.load(options.folder)
    queries = [student.prompt("query") + text for text in test.queries.values()]
    passages = [student.prompt("passage") + text for text in test.passages.values()]
    lines = [*head(options.folder, student, queries, passages)]
    lines += quality(options.folder, student, test, queries, passages)
    print("\n".join(lines), flush=True)
    lines += latency(options.folder, student, queries, passages, options.rounds)
    print("\n".join(lines), flush=True)
    lines += elsewhere(options, student, [*queries[:50], *passages[:50]])
    print("\n".join(lines))
    if options.write:
        PAGE.write_text("\n".join(lines) + "\n", "utf-8")


def model_of(folder: Path, name: str, student: Embedder) -> OnnxModel:
    return OnnxModel(folder / FOLDER / name, student.tokenizer, threads=1)


def outputs_of(student: Embedder) -> dict[str, int]:
    dims = [student.default_dim, *(dim for dim in reversed(student.dims) if dim != student.default_dim)]
    return dict(zip(outputs_by_dim(SENTENCE, dims), dims, strict=True))


def head(folder: Path, student: Embedder, queries: Sequence[str], passages: Sequence[str]) -> list[str]:
    tokens = [np.mean([len(ids) for ids in student.tokenizer.encode(texts)]) for texts in (queries, passages)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "onnx", "onnxscript", "torch", "jax"))
    encoder = student.encoder
    return [
        "# ONNX and int8",
        "",
        f"Made by `scripts/bench/serve_onnx.py`: an exported student of {encoder.num_layers} layers and width"
        f" {encoder.hidden_size} ({encoder.family.model_type}), after `jasper export FOLDER --onnx`. nDCG@10 on Reddit:"
        f" {len(passages)} passages of {tokens[1]:.0f} tokens on average, {len(queries)} questions of {tokens[0]:.0f}.",
        "",
        f"{versions}; {platform.machine()} with {', '.join(sorted(FLAGS & cpu_flags())) or 'other instructions'}.",
        "",
    ]


def cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def ndcg(test: RetrievalTest, queries: np.ndarray, passages: np.ndarray) -> tuple[float, float]:
    found = score_retrieval(queries, passages, test).ndcg10
    return found.value, found.half


def quality(folder: Path, student: Embedder, test: RetrievalTest, queries, passages) -> list[str]:
    """nDCG@10 of each form at each dimension, and the worst cosine of the float32 graph with the student."""
    pooled = [student.pooled(texts) for texts in (queries, passages)]
    scores: dict[tuple[str, int], tuple[float, float]] = {}
    worst: dict[str, float] = dict.fromkeys((MODEL, QUANTIZED), 1.0)
    outputs = outputs_of(student)
    models = {name: model_of(folder, name, student) for name in worst}
    made = {n: [m.vectors(texts, list(outputs)) for texts in (queries, passages)] for n, m in models.items()}
    for i, dim in enumerate(outputs.values()):
        own = [normalize_rows(student.project(x, dim)) for x in pooled]
        scores["student", dim] = ndcg(test, *own)
        for name in worst:
            found = [vectors[i] for vectors in made[name]]
            scores[name, dim] = ndcg(test, *found)
            worst[name] = min(worst[name], *(float((a * b).sum(axis=1).min()) for a, b in zip(own, found)))
    lines = [
        "| dimensions | student in JAX | float32 | int8 | int8 of float32 |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for dim in outputs_of(student).values():
        cells = [f"{value:.4f} ± {half:.3f}" for value, half in (scores[n, dim] for n in ("student", MODEL, QUANTIZED))]
        lines.append(f"| {dim} | {' | '.join(cells)} | {scores[QUANTIZED, dim][0] / scores[MODEL, dim][0]:.1%} |")
    sizes = [(folder / FOLDER / name).stat().st_size / 1e6 for name in (MODEL, QUANTIZED)]
    return [
        *lines,
        "",
        f"Worst cosine with the student over all of these texts and dimensions: float32 {worst[MODEL]:.7f}, int8"
        f" {worst[QUANTIZED]:.4f}. Files: float32 {sizes[0]:.1f} MB, int8 {sizes[1]:.1f} MB.",
        "",
    ]


def cpu_ms(programs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least CPU milliseconds of each program, which take turns."""
    took: dict[str, list[float]] = {name: [] for name in programs}
    for work in programs.values():
        work()  # compiles
    for _ in range(rounds):
        for name, work in programs.items():
            start = time.process_time()
            work()
            took[name].append(1e3 * (time.process_time() - start))
    return {name: min(times) for name, times in took.items()}


def latency(folder: Path, student: Embedder, queries, passages, rounds: int) -> list[str]:
    torch.set_num_threads(1)
    in_torch = SentenceTransformer(str(folder), device="cpu").float()
    models = {name: model_of(folder, name, student) for name in (MODEL, QUANTIZED)}
    lines = [
        "CPU time of one core for a call, tokenisation included, relative to float32; larger is faster. JAX packs texts"
        " into rows of fixed sizes: one text pays for a whole row.",
        "",
        "| | tokens | float32, ms | int8 | sentence-transformers, torch | JAX |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    work = {"a question": queries[:1], "a passage": passages[:1]}
    work |= {"32 questions": queries[:32], "32 passages": passages[:32]}
    for what, texts in work.items():
        programs: dict[str, Callable[[], object]] = {
            name: partial(model.run, texts, [SENTENCE]) for name, model in models.items()
        }
        programs["torch"] = partial(in_torch.encode, texts, prompt="", show_progress_bar=False)
        programs["jax"] = partial(student.encode, texts)
        took = cpu_ms(programs, rounds if len(texts) == 1 else rounds // 2)
        longest = max(len(ids) for ids in student.tokenizer.encode(texts))
        ratios = [took[MODEL] / took[name] for name in (QUANTIZED, "torch", "jax")]
        lines.append(f"| {what} | {longest} | {took[MODEL]:.1f} | {' | '.join(f'{r:.2f}' for r in ratios)} |")
    return [*lines, ""]


def elsewhere(options: argparse.Namespace, student: Embedder, texts: list[str]) -> list[str]:
    """The same texts in Node and in sentence-transformers' ONNX backend: the worst cosine with the student, of texts
    that fit and of texts that are cut."""
    folder, place = str(options.folder.resolve()), tempfile.mkdtemp()
    given, out = Path(place) / "texts.json", Path(place) / "vectors.json"
    given.write_text(json.dumps(texts), "utf-8")
    programs: dict[str, list[list[str]]] = {}
    if options.node:
        programs["Node, `@huggingface/transformers`"] = [
            ["node", str(NODE), folder, str(given), str(out), dtype] for dtype in ("fp32", "q8")
        ]
    if options.optimum:
        programs['sentence-transformers, `backend="onnx"`'] = [
            [options.optimum, "-c", OPTIMUM, folder, f"{FOLDER}/{name}", str(given), str(out)]
            for name in (MODEL, QUANTIZED)
        ]
    expected = student.encode(texts)
    whole = student.tokenizer.with_max_length(student.encoder.max_positions).encode(texts)
    cut = np.array([len(ids) > student.max_length for ids in whole])
    lines = [
        f"The same {len(texts)} texts, half questions and half passages, in batches of eight: worst cosine with the"
        f" student's vectors, of the {(~cut).sum()} texts that fit into {student.max_length} tokens and of the"
        f" {cut.sum()} that are cut.",
        "",
        "| | versions | float32 | int8 | float32, cut | int8, cut |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for what, commands in programs.items():
        cosines, said = [], ""
        for command in commands:
            subprocess.run(command, check=True, cwd=options.node)
            found = json.loads(out.read_text("utf-8"))
            said = found["version"]
            cosines.append((np.array(found["vectors"]) * expected).sum(axis=1))
        worst = [f"{of[which].min():.7f}" for which in (~cut, cut) for of in cosines]
        lines.append(f"| {what} | {said} | {' | '.join(worst)} |")
    return [
        *lines,
        "",
        "Node cuts a text after its last token (`[SEP]`) has been added, and so loses it: cut long texts before, or put"
        " the token back.",
    ]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    onnxruntime.set_default_logger_severity(3)
    main()
