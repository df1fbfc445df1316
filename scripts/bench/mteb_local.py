"""Seven types of MTEB's tasks on data that packages carry, beside `jasper evaluate` where both score the same.

    python scripts/bench/mteb_local.py runs/quickstart/export all-MiniLM-L6-v2 all-mpnet-base-v2 --dim 1152 --dim 256

For a machine without the hub. The tasks are MTEB's own classes on SQuAD-shifts (Reddit's passages and questions; the
questions of four domains, told apart) and on the Lee documents, whose similarities people judged. Needs the extra
``mteb``. Results are in ``--output`` as MTEB lays them out, and are not scored twice; the table is written to
docs/results/mteb.md.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import mteb
import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.clustering import AbsTaskClustering
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.summarization import AbsTaskSummarization

from jasper_jax.assets.corpora import lee_similarities, read_corpus, retrieval_test, subset
from jasper_jax.benchmarks.candidates import candidates
from jasper_jax.benchmarks.model_meta import model_name
from jasper_jax.benchmarks.run import run_benchmark
from jasper_jax.evaluation.benchmark_scores import BenchmarkScores
from jasper_jax.evaluation.folders import asked_of, evaluate_folders
from jasper_jax.runtime.environment import environment
from jasper_jax.runtime.program_cache import cache_programs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "mteb.md"
DOMAINS = ("amazon", "new_wiki", "nyt", "reddit")
PASSAGES, QUESTIONS = 200, 150
"""Passages of Reddit, each with two questions; questions of each domain."""


def described(kind: str, name: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        type=kind,
        name=name,
        main_score=main_score,
        description="SQuAD-shifts and the Lee documents.",
        reference=None,
        dataset={"path": "NA", "revision": "NA"},
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2000-01-01", "2020-12-31"),
        dialect=[],
        domains=[],
        task_subtypes=[],
        license=None,
        annotations_creators="human-annotated",
        modalities=["text"],
        sample_creation="found",
        bibtex_citation="",
    )


REDDIT = subset(retrieval_test("squad-shifts", "reddit"), PASSAGES, 2)
LEE, JUDGED = lee_similarities()
PAIRS = list(zip(*np.triu_indices(len(LEE), 1)))
ASKED = [
    (document.text, label)
    for label, split in enumerate(DOMAINS)
    for document, _ in zip(read_corpus("squad-shifts", [split], "query"), range(QUESTIONS))
]
ANSWERED = [(REDDIT.queries[query], REDDIT.passages[next(iter(found))]) for query, found in REDDIT.relevant.items()]


class RedditRetrieval(AbsTaskRetrieval):
    metadata = described("Retrieval", "RedditRetrieval", "ndcg_at_10")
    candidates: ClassVar[dict[str, list[str]] | None] = None

    def load_data(self, **kwargs: Any) -> None:
        rows = [[{"id": i, "text": t, "title": ""} for i, t in x.items()] for x in (REDDIT.queries, REDDIT.passages)]
        split = RetrievalSplitData(
            queries=Dataset.from_list(rows[0]),
            corpus=Dataset.from_list(rows[1]),
            relevant_docs={query: dict(found) for query, found in REDDIT.relevant.items()},
            top_ranked=self.candidates,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True

    def task_specific_scores(self, scores: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """nDCG@10 as it is before MTEB rounds it to five digits."""
        return {"exact": float(np.mean([score["ndcg_cut_10"] for score in scores.values()]))}


class RedditReranking(RedditRetrieval):
    """The answer among 19 other passages, the same for every model."""

    metadata = described("Reranking", "RedditReranking", "map_at_1000")
    candidates: ClassVar = {
        query: [*found, *(key for key in list(REDDIT.passages)[number % 180 :][:19] if key not in found)]
        for number, (query, found) in enumerate(REDDIT.relevant.items())
    }


class _Rows:
    rows: ClassVar[dict[str, dict[str, list[Any]]]]

    def load_data(self, **kwargs: Any) -> None:
        self.dataset = DatasetDict({split: Dataset.from_dict(columns) for split, columns in self.rows.items()})
        self.data_loaded = True


class LeeSTS(_Rows, AbsTaskSTS):
    metadata = described("STS", "LeeSTS", "cosine_spearman")
    min_score, max_score = 0, 1
    rows: ClassVar = {
        "test": {
            "sentence1": [LEE[i] for i, _ in PAIRS],
            "sentence2": [LEE[j] for _, j in PAIRS],
            "score": [float(JUDGED[i, j]) for i, j in PAIRS],
        }
    }


class LeeSummaries(_Rows, AbsTaskSummarization):
    """A document stands for its own summary; the judged similarities of eight others say how well they would."""

    metadata = described("Summarization", "LeeSummaries", "cosine_spearman")
    min_score, max_score = 0, 1
    rows: ClassVar = {
        "test": {
            "text": LEE,
            "human_summaries": [[text] for text in LEE],
            "machine_summaries": [[LEE[j - k] for k in range(1, 9)] for j in range(len(LEE))],
            "relevance": [[float(JUDGED[j, j - k]) for k in range(1, 9)] for j in range(len(LEE))],
        }
    }


class DomainClassification(_Rows, AbsTaskClassification):
    metadata = described("Classification", "DomainClassification", "accuracy")
    n_experiments, samples_per_label = 5, 16
    rows: ClassVar = {
        split: {"text": [text for text, _ in chosen], "label": [label for _, label in chosen]}
        for split, chosen in (("train", ASKED[::3]), ("test", [x for i, x in enumerate(ASKED) if i % 3]))
    }


class DomainClustering(_Rows, AbsTaskClustering):
    metadata = described("Clustering", "DomainClustering", "v_measure")
    max_document_to_embed, max_fraction_of_documents_to_embed = len(ASKED), None
    max_documents_per_cluster, n_clusters = len(ASKED) // 2, 5
    rows: ClassVar = {"test": {"sentences": [text for text, _ in ASKED], "labels": [label for _, label in ASKED]}}


class RedditPairs(_Rows, AbsTaskPairClassification):
    """Whether the passage, its own or the next question's, answers the question."""

    metadata = described("PairClassification", "RedditPairs", "max_ap")
    rows: ClassVar = {
        "test": {
            "sentence1": [question for question, _ in ANSWERED] * 2,
            "sentence2": [passage for _, passage in [*ANSWERED, *ANSWERED[-3:], *ANSWERED[:-3]]],
            "labels": [1] * len(ANSWERED)
            + [int(own == other) for (_, own), (_, other) in zip(ANSWERED, [*ANSWERED[-3:], *ANSWERED[:-3]])],
        }
    }


TASKS = [
    *(RedditRetrieval, RedditReranking, RedditPairs),
    *(LeeSTS, LeeSummaries, DomainClassification, DomainClustering),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="folders or names; the first is scored at every --dim")
    parser.add_argument("--dim", type=int, action="append", default=[])
    parser.add_argument("--output", type=Path, default=Path("mteb-local"))
    options = parser.parse_args()
    cache_programs()
    tasks = [task() for task in TASKS]
    done = None
    for number, candidate in enumerate(candidates(options.models, teachers=False)):
        done = run_benchmark(
            candidate.folder(),
            model_name(candidate.source, None),
            tasks,
            options.output,
            dims=options.dim if number == 0 else (),
        )
        if done.failed:
            print(done.failed, file=sys.stderr)
            return 1
    assert done is not None
    differences = compare(options.models[0], options.dim, options.output)
    write_page(done.scores, differences, " ".join(sys.argv[1:]))
    return 0 if max(differences.values()) < 1e-6 else 1


def compare(model: str, dims: list[int], output: Path) -> dict[str, float]:
    """Test -> the largest difference of MTEB's score and that of `jasper evaluate`, over ``dims``."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        labelled = [(REDDIT.queries[q], REDDIT.passages[p]) for q, found in REDDIT.relevant.items() for p in found]
        judged = [(LEE[i], LEE[j], JUDGED[i, j]) for i, j in PAIRS]
        for file, columns, rows in (
            ("reddit.csv", ("query", "passage"), labelled),
            ("lee.csv", ("query", "passage", "score"), judged),
        ):
            with (place / file).open("w", newline="", encoding="utf-8") as out:
                csv.writer(out).writerows([columns, *rows])
        asked = asked_of([str(place / "reddit.csv")], [], [str(place / "lee.csv")])
        ours = {row.dim: row for row in evaluate_folders([model], asked, dims).rows}
    found = mteb.ResultCache(output).load_results(tasks=["RedditRetrieval", "LeeSTS"], load_experiments="match_name")
    name = model_name(model, None)
    largest = {"RedditRetrieval": 0.0, "LeeSTS": 0.0}
    for result in found.model_results:
        if result.model_name != name:
            continue
        row = ours[result.model_meta.embed_dim]
        expected = {"RedditRetrieval": row.retrieval["reddit"].ndcg10.value, "LeeSTS": row.similarity["lee"].spearman}
        for task in result.task_results:
            score = task.scores["test"][0]["exact" if task.task_name == "RedditRetrieval" else "main_score"]
            largest[task.task_name] = max(largest[task.task_name], abs(score - expected[task.task_name]))
    return largest


def write_page(scores: BenchmarkScores, differences: dict[str, float], command: str) -> None:
    machine = ", ".join(f"{key} {value}" for key, value in environment().items())
    lines = [
        "# MTEB's seven types of tasks, without the hub",
        "",
        f"`python scripts/bench/mteb_local.py {command}`",
        "",
        (__doc__ or "").split("\n\n")[2].split("Needs the extra")[0].replace("\n", " ").strip(),
        f"Reddit: {len(REDDIT.passages)} passages, {len(REDDIT.queries)} questions; reranking: 20 passages a question;",
        f"pairs: each question with its passage and another one's; domains: {len(ASKED)} questions of four, 16 of each",
        "to learn from. The quickstart trains on texts of new_wiki and nyt, without labels; Reddit and",
        "Lee it has not seen. Scores are MTEB's main scores in percent, through `jasper mteb`'s own path",
        f"({machine}).",
        "",
        "| type | task | " + " | ".join(model.title(" ") for model in scores.models) + " |",
        "| --- | --- | " + " | ".join("---:" for _ in scores.models) + " |",
    ]
    for row in scores.rows():
        digits = ["" if score is None else f"{score:.2f}" for score in row.scores]
        lines.append(f"| {row.kind} | {row.name} | " + " | ".join(digits) + " |")
    apart = ", ".join(f"{task} {difference:.1e}" for task, difference in differences.items())
    lines += ["", f"Largest difference to `jasper evaluate --pairs --similarity` on the same data: {apart}."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
