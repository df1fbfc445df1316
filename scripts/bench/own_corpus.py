"""A corpus of one's own: names and descriptions of Python functions, held out by package.

    python scripts/bench/own_corpus.py [--out runs/own-corpus]

The texts come with the packages that this project installs: the qualified name of a public function or class is the
query, what its docstring says before its parameters is the passage. Nothing is imported; sources are parsed. The recipe
is ``configs/own_corpus.yaml``: six layers taught by two teachers, then by the labelled pairs too. Writes
``docs/results/own-corpus.md``. Run again, it continues.
"""

from __future__ import annotations

import argparse
import ast
import csv
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jasper_jax.evaluation.evaluation import Evaluation, from_json

ROOT = Path(__file__).parents[2]
RECIPE, PAGE = ROOT / "configs" / "own_corpus.yaml", ROOT / "docs" / "results" / "own-corpus.md"
TRAIN = ("scipy", "sklearn", "sympy", "matplotlib", "torch", "stdlib")
TEST = ("numpy", "networkx", "jax", "optax")
MOST_A_PACKAGE, MOST_TESTED = 1200, 1200
_SECTION = re.compile(r"^\s*(Parameters|Args|Arguments|Returns|Examples?|Notes|See Also|Attributes)\b.*:?\s*$", re.M)
_MARKUP = re.compile(r"`+|:\w+:|\*\*|\.\. \w+::.*")
_SKIPPED = ("test", "site-packages", "idlelib", "lib2to3", "__pycache__", "_vendor", "externals")


def folder_of(package: str) -> Path:
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package}: not installed; pip install -e .[dev] first")
    return Path(spec.submodule_search_locations[0])


def described(package: str) -> Iterator[tuple[str, str]]:
    """Query and passage of each public function or class of ``package`` with a description of 60 to 600 characters."""
    top = folder_of(package)
    for path in sorted(top.rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        if any(part.startswith(_SKIPPED) for part in parts):
            continue
        named = (() if package == "stdlib" else (package,)) + parts
        module = ".".join(part.lstrip("_") for part in named if part != "__init__")
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                text = _SECTION.split(inspect.cleandoc(ast.get_docstring(node) or ""))[0]
                text = " ".join(_MARKUP.sub("", text).split())
                if 60 <= len(text) <= 600:
                    yield f"{node.name} in {module}", text


def pairs(packages: tuple[str, ...]) -> list[tuple[str, str]]:
    """Up to ``MOST_A_PACKAGE`` of each package, evenly over its files; no passage twice."""
    found: dict[str, str] = {}
    for package in packages:
        of_one = {passage: query for query, passage in described(package) if passage not in found}
        step = max(len(of_one) / MOST_A_PACKAGE, 1.0)
        items = list(of_one.items())
        found |= dict(items[int(i * step)] for i in range(int(len(items) / step)))
    return [(query, passage) for passage, query in found.items()]


def collect(out: Path) -> tuple[int, int]:
    """Write the files that the recipe reads; how many pairs it trains on and is tested with."""
    out.mkdir(parents=True, exist_ok=True)
    train, test = pairs(TRAIN), pairs(TEST)
    test = test[:: max(len(test) // MOST_TESTED, 1)][:MOST_TESTED]
    for name, rows in (("train.csv", train), ("test.csv", test)):
        with (out / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("query", "passage"), *rows])
    for name, column in (("names.jsonl", 0), ("descriptions.jsonl", 1)):
        lines = (json.dumps({"text": row[column]}) for row in train)
        (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(train), len(test)


def named(packages: tuple[str, ...]) -> str:
    """The packages with their versions."""
    versions = {name: platform.python_version() if name == "stdlib" else "" for name in packages}
    distributions = importlib.metadata.packages_distributions()
    for name in (name for name in packages if not versions[name]):
        versions[name] = importlib.metadata.version(distributions[name][0])
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def page(counts: tuple[int, int], evaluation: Evaluation) -> str:
    """The page of a finished run: teachers, what needs no training, and the student after each stage."""
    (test,) = {name for row in evaluation.rows for name in row.retrieval}
    before = [row for row in evaluation.rows if row.role in ("teacher", "teachers", "baseline")]
    students = [row for row in evaluation.rows if row.role == "student" and row.stage]
    among = [row for row in evaluation.rows if row.role == "asymmetric"]
    lines = [
        "# A corpus of one's own: names and descriptions of Python functions",
        "",
        f"`python scripts/bench/own_corpus.py`, which writes this page; `configs/own_corpus.yaml`, one seed."
        f" {counts[0]:,} pairs of {named(TRAIN)} to train on; tested on {counts[1]:,} of {named(TEST)}: which"
        " description belongs to a name, among all of them. ±: half the 95% bootstrap interval over the names. Million"
        " weights: what a token meets. Last: the student's queries among documents that a teacher embedded.",
        "",
        "| | dimensions | million weights | nDCG@10 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in [*before, *sorted(students, key=lambda row: row.stage or 0)]:
        score = row.retrieval[test].ndcg10
        name = f"**student {row.provider}**" if row.role == "student" else row.provider
        weights = (row.weights or 0) / 1e6
        lines.append(f"| {name} | {row.dim} | {weights:.1f} | {score.value:.4f} ± {score.half:.4f} |")
    for row in among:
        score = row.retrieval[test].ndcg10
        lines.append(f"| queries, documents: {row.documents} | {row.dim} | | {score.value:.4f} ± {score.half:.4f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "own-corpus")
    out = parser.parse_args().out.resolve()
    counts = collect(out)
    print(f"{counts[0]} pairs to train on, {counts[1]} to test with", flush=True)
    subprocess.run([sys.executable, "-m", "jasper_jax.cli", "run", str(RECIPE)], cwd=out, check=True)
    PAGE.write_text(page(counts, from_json(out / "run" / "evaluation.json")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
