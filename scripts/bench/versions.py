"""Load three exports in several versions of sentence-transformers and transformers, and write docs/results/versions.md.

    python scripts/bench/versions.py 3.4.1=PYTHON 4.1.0=PYTHON ... [--write]

Each PYTHON is the interpreter of an environment with that sentence-transformers (and a transformers that it accepts);
the interpreter that runs this script is the current one. The exports are tiny untrained students, written as
``jasper export`` writes them. Costs a minute of CPU time per version.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jasper_jax.encoders.prompts import KINDS
from jasper_jax.export.model import TrainedStudent
from jasper_jax.export.sentence_transformers import write_model
from jasper_jax.export.tokenizer import TEXTS
from jasper_jax.export.versions import least_versions
from jasper_jax.recipe.load import parse_recipe
from jasper_jax.student.dimensions import providers
from jasper_jax.student.heads import project_rows
from jasper_jax.student.source import StudentSource
from jasper_jax.student.start import load_student, student_embedder

sys.path.append(str(Path(__file__).resolve().parents[2]))
from tests.tiny import write_model as write_source

PAGE = Path(__file__).parents[2] / "docs" / "results" / "versions.md"
LOAD = """
import json, sys, warnings
warnings.simplefilter("ignore")
out = {}
import sentence_transformers, transformers
out["versions"] = [sentence_transformers.__version__, transformers.__version__]
job = json.load(open(sys.argv[1]))
for name, folder in job["folders"].items():
    try:
        model = sentence_transformers.SentenceTransformer(folder, device="cpu")
        out[name] = {kind: model.encode(job["texts"], prompt_name=kind).tolist() for kind in job["kinds"]}
    except Exception as error:
        out[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    try:
        model, tokenizer = (getattr(transformers, c).from_pretrained(folder) for c in ("AutoModel", "AutoTokenizer"))
        import torch
        with torch.no_grad():
            states = model(**tokenizer(job["texts"][:1], return_tensors="pt", truncation=True)).last_hidden_state
        out[name + "/states"] = states[0].tolist()
    except Exception as error:
        out[name + "/states"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
json.dump(out, open(sys.argv[2], "w"))
"""
NAMES = {"bert": "BERT", "qwen2": "Qwen2, bidirectional", "multilingual": "BERT, multilingual tokenizer"}


def student(name: str, place: Path) -> TrainedStudent:
    """An untrained student of one of ``NAMES``."""
    source = write_source(place / "source", model_type="qwen2-bidirectional" if name == "qwen2" else "bert")
    if name == "multilingual":
        from tests.export.test_tokenizer import sentencepiece

        for path in source.glob("tokenizer*.json"):
            path.unlink()
        sentencepiece(place / "sentencepiece")
        (place / "sentencepiece" / "tokenizer.json").rename(source / "tokenizer.json")
    recipe = parse_recipe(
        {
            "name": name,
            "run_dir": str(place / "run"),
            "student": {"model": str(source), "prompts": {"query": "what is ", "passage": ""}},
            "heads": {"fc1": {"dim": 8, "target": "pooled"}},
            "texts": {"sources": [{"text": str(source / "config.json")}]},
            "stages": [
                {
                    "name": "one",
                    "train": ["heads/**"],
                    "heads": ["fc1"],
                    "steps": 1,
                    "batch_size": 8,
                    "learning_rate": 1e-3,
                }
            ],
        },
        where=name,
    )
    folders = StudentSource(recipe.student)
    made, params, tokenizer = load_student(recipe, None, folders)
    served = providers(made.heads, {})
    return TrainedStudent(made, params, tokenizer, folders.tokenizer_path, served, 8, recipe.export)


def cosine(expected: dict[str, np.ndarray], found: dict[str, list]) -> float:
    """The worst cosine of two sets of vectors by kind; a text without tokens has the vector 0 in both, and counts 1."""
    worst = 1.0
    for kind in KINDS:
        a, b = expected[kind], np.array(found[kind])
        product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        zero = (np.abs(a).max(axis=1) == 0) & (np.abs(b).max(axis=1) == 0)
        worst = min(worst, float(np.where(zero, 1.0, (a * b).sum(axis=1) / np.where(zero, 1.0, product)).min()))
    return worst


def page(results: dict[str, Any], expected: dict[str, Any], least: dict[str, dict[str, str]]) -> str:
    """The page, of the versions tried so far."""
    current, lines = results["current"], []
    for result in (*list(results.values())[1:], current):
        cells = []
        for name in NAMES:
            found, plain = result[name], result[f"{name}/states"]
            cell = found if isinstance(found, str) else f"cosine {cosine(expected[name], found):.6f}"
            if isinstance(plain, str):
                other = f"refused ({plain.split(':')[0]})"
            else:
                other = f"{np.abs(np.array(plain) - np.array(current[f'{name}/states'])).max():.0e}"
            cells.append(f"{cell}; AutoModel: {other}")
        lines.append(f"| {' | '.join(result['versions'])} | {' | '.join(cells)} |")
    header = [
        f"| sentence-transformers | transformers | {' | '.join(NAMES.values())} |",
        f"| --- | --- |{' --- |' * len(NAMES)}",
    ]
    names = "; ".join(f"{NAMES[n]}: {', '.join(f'{p} {v}' for p, v in least[n].items())}" for n in NAMES)
    return "\n".join(
        [
            "# Exports in other versions",
            "",
            "Made by `scripts/bench/versions.py`: tiny untrained students, exported and loaded in each version. A"
            " cell has",
            "the worst cosine between the student's vectors and those of `SentenceTransformer.encode`, over"
            f" {len(TEXTS)} texts",
            "as queries and as passages, or the error; then the largest difference of the token states of"
            " `AutoModel` with",
            "`AutoTokenizer` from the current version's, or how they refuse.",
            "",
            "Earlier versions of sentence-transformers remove white space at the ends of a text, which a SentencePiece"
            " tokenizer",
            "sees and BERT's does not: two of the texts differ there.",
            "",
            *header,
            *lines,
            "",
            f"The card of an export names the least versions: {names}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environments", nargs="*", metavar="NAME=PYTHON")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    pythons = {"current": sys.executable} | dict(item.split("=", 1) for item in arguments.environments)
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        place, expected, least = Path(scratch), {}, {}
        for name in NAMES:
            trained = student(name, place / name)
            write_model(place / name / "export", trained)
            embedder = student_embedder(trained.student, trained.params, trained.tokenizer)
            head = trained.head(8)
            expected[name] = {k: project_rows(head, embedder.pooled(list(TEXTS), k)) for k in KINDS}
            least[name] = least_versions(trained.student.encoder)
        job = place / "job.json"
        folders = {name: str(place / name / "export") for name in NAMES}
        job.write_text(json.dumps({"folders": folders, "texts": TEXTS, "kinds": KINDS}))
        (place / "load.py").write_text(LOAD)
        results = {}
        for version, python in pythons.items():
            out = place / f"{version}.json"
            command = [python, str(place / "load.py"), str(job), str(out)]
            if (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
                print(f"{version}: {done.stderr.strip()[-300:]}", file=sys.stderr)
                continue
            print(version, {k: v if isinstance(v, str) else "loaded" for k, v in json.loads(out.read_text()).items()})
            results[version] = json.loads(out.read_text())
            if arguments.write:  # after each, since one takes minutes on a busy machine
                PAGE.write_text(page(results, expected, least), encoding="utf-8")
    print(page(results, expected, least))


if __name__ == "__main__":
    main()
