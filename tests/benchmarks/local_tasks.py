"""Seven tasks of MTEB, one of each type, through its own classes, on sentences made here; importing needs mteb."""

from __future__ import annotations

from typing import Any, ClassVar

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

from tests.tiny import sentences

TEXTS = sentences(36)
QUERIES = {f"q{i}": text for i, text in enumerate(TEXTS[:8])}
PASSAGES = {f"p{i}": text for i, text in enumerate(TEXTS[8:])}
RELEVANT = {f"q{i}": {f"p{i}": 1, f"p{i * 3 % 20 + 8}": 2} for i in range(8)}
Tables = dict[str, dict[str, list[Any]]]
JUDGED = [(TEXTS[i], TEXTS[i + 12], float(i * 7 % 12)) for i in range(12)]


def metadata(kind: str, main_score: str, name: str | None = None) -> TaskMetadata:
    return TaskMetadata(
        type=kind,
        name=name or f"Local{kind}",
        main_score=main_score,
        description="Sentences made for a test.",
        reference=None,
        dataset={"path": "NA", "revision": "NA"},
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2024-01-01", "2024-01-01"),
        dialect=[],
        domains=[],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        modalities=["text"],
        sample_creation="created",
        bibtex_citation="",
    )


class LocalRetrieval(AbsTaskRetrieval):
    metadata = metadata("Retrieval", "ndcg_at_10")
    loads = 0
    """How often the data were loaded: of finished tasks, never again."""

    def load_data(self, **kwargs: Any) -> None:
        type(self).loads += 1
        rows = [[{"id": i, "text": t, "title": ""} for i, t in texts.items()] for texts in (QUERIES, PASSAGES)]
        self.dataset = {
            "default": {
                "test": RetrievalSplitData(
                    queries=Dataset.from_list(rows[0]),
                    corpus=Dataset.from_list(rows[1]),
                    relevant_docs=RELEVANT,
                    top_ranked=None,
                )
            }
        }
        self.data_loaded = True

    def task_specific_scores(self, scores: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """nDCG@10 as it is before MTEB rounds it to five digits."""
        return {"exact": float(np.mean([score["ndcg_cut_10"] for score in scores.values()]))}


class LocalReranking(LocalRetrieval):
    metadata = metadata("Reranking", "map_at_1000")

    def load_data(self, **kwargs: Any) -> None:
        super().load_data()
        self.dataset["default"]["test"]["top_ranked"] = {q: [*found, "p1", "p2", "p3"] for q, found in RELEVANT.items()}


class _Rows:
    """A task on tables of rows."""

    tables: ClassVar[Tables]

    def load_data(self, **kwargs: Any) -> None:
        self.dataset = DatasetDict({split: Dataset.from_dict(rows) for split, rows in self.tables.items()})
        self.data_loaded = True


class LocalSTS(_Rows, AbsTaskSTS):
    metadata = metadata("STS", "cosine_spearman")
    min_score, max_score = 0, 11
    tables: ClassVar[Tables] = {"test": dict(zip(("sentence1", "sentence2", "score"), map(list, zip(*JUDGED))))}


class LocalClassification(_Rows, AbsTaskClassification):
    metadata = metadata("Classification", "accuracy")
    n_experiments = 2
    samples_per_label = 4
    tables: ClassVar[Tables] = {
        "train": {"text": TEXTS[:16], "label": [i % 2 for i in range(16)]},
        "test": {"text": TEXTS[16:], "label": [i % 2 for i in range(20)]},
    }


class LocalClustering(_Rows, AbsTaskClustering):
    metadata = metadata("Clustering", "v_measure")
    max_document_to_embed = 36
    max_fraction_of_documents_to_embed = None
    max_documents_per_cluster = 16
    n_clusters = 2
    tables: ClassVar[Tables] = {"test": {"sentences": TEXTS, "labels": [i % 3 for i in range(36)]}}


class LocalPairClassification(_Rows, AbsTaskPairClassification):
    metadata = metadata("PairClassification", "max_ap")
    tables: ClassVar[Tables] = {
        "test": {"sentence1": TEXTS[:12], "sentence2": TEXTS[12:24], "labels": [i % 2 for i in range(12)]}
    }


class LocalSummarization(_Rows, AbsTaskSummarization):
    metadata = metadata("Summarization", "cosine_spearman")
    min_score, max_score = 0, 3
    tables: ClassVar[Tables] = {
        "test": {
            "text": TEXTS[:4],
            "human_summaries": [TEXTS[4 + i : 6 + i] for i in range(4)],
            "machine_summaries": [TEXTS[8 + 4 * i : 12 + 4 * i] for i in range(4)],
            "relevance": [[3.0, 1.0, 2.0, 0.0]] * 4,
        }
    }


class Unreachable(AbsTaskSTS):
    metadata = metadata("STS", "cosine_spearman", "Unreachable")

    def load_data(self, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach 'mteb/unreachable' on the Hub\nand more")


SEVEN = [
    LocalRetrieval,
    LocalSTS,
    LocalClassification,
    LocalClustering,
    LocalReranking,
    LocalPairClassification,
    LocalSummarization,
]
