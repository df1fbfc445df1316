"""int8 by onnxruntime's static quantisation, calibrated on questions and passages, beside the dynamic one of an export.

    jasper export runs/quickstart/export --onnx
    python scripts/bench/onnx_static.py runs/quickstart/export

Static quantisation fixes the range of each activation beforehand. Both leave the heads in float32. The texts of the
calibration are SQuAD-shifts new wiki, of the score Reddit. Writes docs/results/onnx-static.md.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from jasper_jax.assets.corpora import read_corpus, retrieval_test, subset
from jasper_jax.embedder import Embedder
from jasper_jax.evaluation.retrieval import score_retrieval
from jasper_jax.export.onnx_int8 import OPERATORS, agreement_lost, head_nodes
from jasper_jax.export.onnx_session import OnnxModel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "onnx-static.md"
QUERIES, PASSAGES, TOKENS = 96, 32, 64
OUTPUT = "sentence_embedding"


class Batches(CalibrationDataReader):
    """Batches of eight texts of equal shape, which the calibration by percentiles needs."""

    def __init__(self, model: OnnxModel, texts: Sequence[str]):
        self._batches: Iterator[dict[str, np.ndarray]] = iter(
            [self._batch(model, texts[i : i + 8]) for i in range(0, len(texts), 8)]
        )

    @staticmethod
    def _batch(model: OnnxModel, texts: Sequence[str]) -> dict[str, np.ndarray]:
        fill = {"input_ids": model.tokenizer.pad_id, "attention_mask": 0}
        cut = {name: array[:, :TOKENS] for name, array in model.inputs(texts).items()}
        return {
            name: np.pad(array, ((0, 0), (0, TOKENS - array.shape[1])), constant_values=fill[name])
            for name, array in cut.items()
        }

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="an export with onnx/")
    folder = parser.parse_args().folder / "onnx"
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser's advice to pre-process
    student = Embedder.load(folder.parent)
    models = {
        "float32": OnnxModel(folder / "model.onnx", student.tokenizer, threads=1),
        "int8, dynamic": OnnxModel(folder / "model_quantized.onnx", student.tokenizer, threads=1),
    }
    with tempfile.TemporaryDirectory() as place:
        for method in ("MinMax", "Percentile"):
            out = Path(place) / f"{method}.onnx"
            quantize(folder / "model.onnx", out, models["float32"], getattr(CalibrationMethod, method))
            models[f"int8, static ({method})"] = OnnxModel(out, student.tokenizer, threads=1)
        write_page(student, models)


def quantize(source: Path, out: Path, model: OnnxModel, method: CalibrationMethod) -> None:
    kinds = (("query", QUERIES), ("passage", PASSAGES))
    texts = [
        document.text
        for kind, number in kinds
        for document, _ in zip(read_corpus("squad-shifts", ["new_wiki"], kind), range(number))
    ]
    heads = head_nodes(onnx.load(source, load_external_data=False).graph)
    quantize_static(
        str(source),
        str(out),
        Batches(model, sorted(texts, key=len)),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(OPERATORS),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_exclude=[*heads, *(f"{name}_MatMul" for name in heads)],
        calibrate_method=method,
        extra_options={"MatMulConstBOnly": True},
    )


def write_page(student: Embedder, models: dict[str, OnnxModel]) -> None:
    test = subset(retrieval_test("squad-shifts", "reddit"), 400, 2)
    queries, passages = list(test.queries.values()), list(test.passages.values())
    found = {name: [m.vectors(texts, [OUTPUT])[0] for texts in (queries, passages)] for name, m in models.items()}
    whole, same = found["float32"][1], len(passages) // 2
    lines = [
        "# int8 with fixed ranges",
        "",
        "`python scripts/bench/onnx_static.py runs/quickstart/export`",
        "",
        f"onnxruntime's static quantisation, calibrated on {QUERIES} questions and {PASSAGES} passages of new wiki,",
        f"beside the dynamic one that an export has. Reddit, {len(passages)} passages, {len(queries)} questions,"
        f" {student.default_dim} dimensions. CPU",
        "time of one core and call: of float32 in milliseconds, then how many times as fast.",
        "",
        "| | nDCG@10 | of float32 | worst cosine | Spearman lost | a question | a passage |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    scores = {name: score_retrieval(*vectors, test).ndcg10.value for name, vectors in found.items()}
    times = [cpu_ms({name: call(m, text) for name, m in models.items()}) for text in (queries[0], passages[0])]
    for name, (_, vectors) in found.items():
        cosine = float((vectors * whole).sum(axis=1).min())
        lost = agreement_lost([whole[:same]], [vectors[:same]])
        speed = [f"{t[name]:.1f}" if name == "float32" else f"{t['float32'] / t[name]:.2f}" for t in times]
        kept = f"{scores[name]:.4f} | {100 * scores[name] / scores['float32']:.1f}%"
        lines.append(f"| {name} | {kept} | {cosine:.4f} | {lost:.4f} | {' | '.join(speed)} |")
    lines += ["", "Fixed ranges lose more and are no faster, so `jasper export --onnx` writes the dynamic form."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def call(model: OnnxModel, text: str) -> Callable[[], object]:
    return lambda: model.run([text], [OUTPUT])


def cpu_ms(programs: dict[str, Callable[[], object]], rounds: int = 30) -> dict[str, float]:
    """Milliseconds of processor time of each program, the least of ``rounds`` in turn."""
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(rounds):
        for name, program in programs.items():
            began = time.process_time()
            program()
            best[name] = min(best[name], time.process_time() - began)
    return {name: 1e3 * seconds for name, seconds in best.items()}


if __name__ == "__main__":
    main()
