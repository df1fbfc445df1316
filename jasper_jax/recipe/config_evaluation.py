"""The section ``evaluation`` of a recipe: what a run is scored by."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from jasper_jax.recipe.config_sources import Name, PairSource, Section
from jasper_jax.runtime.text_files import content_suffix

FILE_KINDS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
"""Ending of a file's name -> the key of a source of that kind."""


def file_kind(file: str) -> str:
    """The kind of a file of labels, by its name. ValueError: the ending is of none."""
    kind = FILE_KINDS.get(content_suffix(file))
    if kind is None:
        raise ValueError(f"{file}: expected a name that ends in {', '.join(FILE_KINDS)}, compressed or not")
    return kind


def _of_file(source: Any) -> Any:
    return {file_kind(source): source} if isinstance(source, str) else source


def _of_judged_file(source: Any) -> Any:
    return {file_kind(source): source, "score": "score"} if isinstance(source, str) else source


class Retrieval(Section):
    """A retrieval test: an asset with splits (SQuAD-shifts), a folder in BEIR's format, or labelled pairs."""

    name: Name
    """Of its columns in tables and of the file in ``evaluations/``."""
    asset: str | None = None
    """A named corpus with questions: ``squad-shifts``."""
    split: str | None = None
    """Of the asset."""
    beir: str | None = None
    """Folder with corpus.jsonl, queries.jsonl and qrels/test.tsv."""
    pairs: Annotated[PairSource | None, BeforeValidator(_of_file)] = None
    """A file of queries, each with a passage that answers it: ``labels.csv``, or ``{csv: labels.csv, score: score}``.
    All its passages are ranked. A score is 0 (no answer), up to 1 (an answer), or a whole number, the gain in nDCG."""
    distractors: PositiveInt | None = None
    """Of pairs: rank this many more passages, drawn by hash from the run's text store; none that the test has."""
    passages: PositiveInt | None = None
    """Use only this many passages, the first by sorted id."""
    queries_per_passage: PositiveInt | None = None
    """Use only this many queries of each passage, the first by sorted id."""

    @model_validator(mode="after")
    def _one(self) -> Retrieval:
        if sum(source is not None for source in (self.asset, self.beir, self.pairs)) != 1:
            raise ValueError("expected exactly one of asset, beir and pairs")
        if self.distractors is not None and self.pairs is None:
            raise ValueError("distractors are for pairs; remove them, a corpus has passages of its own")
        if self.pairs is not None and (self.pairs.limit is not None or self.pairs.weight != 1):
            raise ValueError("limit and weight of pairs are for training; remove them (passages makes a test smaller)")
        return self


class Similarity(Section):
    """A test of semantic similarity: pairs of texts with judgements, whose order the vectors' cosines should have."""

    name: Name
    """Of its column in tables."""
    pairs: Annotated[PairSource, BeforeValidator(_of_judged_file)]
    """A file of pairs with their judgements: ``sts.csv``, with columns query, passage and score, or
    ``{csv: sts.csv, query: one, passage: other, score: score}``."""

    @model_validator(mode="after")
    def _judged(self) -> Similarity:
        if self.pairs.score is None:
            raise ValueError("pairs need score: the column of the judgements, any numbers, the more similar the higher")
        if self.pairs.limit is not None or self.pairs.weight != 1 or self.pairs.negatives is not None:
            raise ValueError("limit, weight and negatives of pairs are for training; remove them")
        return self


class Classification(Section):
    """A linear probe: how well a text's label can be told from its vector."""

    name: Name
    """Of its column in tables."""
    file: str
    """A CSV, TSV, JSONL or Parquet file of texts, each with its label."""
    text: str = "text"
    """The column of the text."""
    label: str = "label"
    """The column of the label: a text or a whole number."""

    @model_validator(mode="after")
    def _known(self) -> Classification:
        file_kind(self.file)
        return self


SimilarityTest = Annotated[
    Annotated[Literal["lee"], Tag("asset")] | Annotated[Similarity, Tag("pairs")],
    Discriminator(lambda test: "asset" if isinstance(test, str) else "pairs"),
]


class Evaluation(Section):
    retrieval: list[Retrieval] = Field(default_factory=list)
    """Retrieval tests."""
    similarity: list[SimilarityTest] = Field(default_factory=list)
    """Tests of semantic similarity: the asset ``lee``, or pairs of texts with judgements."""
    classification: list[Classification] = Field(default_factory=list)
    """Linear probes on texts with labels, as MTEB's classification: accuracy of a logistic regression on the vectors of
    8 texts of each label, on the other texts, mean of 10 draws."""
    instructions: bool | str = False
    """Every retrieval test again under other wordings of the prompts: true, a set of wordings of the query's prompt, or
    a YAML or JSON file ``{query: [...], passage: [...]}`` of the complete texts put before a text."""
    agreement: bool = True
    """Agreement with the teachers on the held-out texts."""
    pairs: bool = True
    """Retrieval of the held-out pairs' passages by their queries, if the recipe has pairs."""
    baselines: bool = True
    """The teachers' vectors shortened to the student's dimensions without training, beside the student."""
    precisions: bool = False
    """The final student's vectors in int8 and binary at each exported dimension, in every retrieval test."""
    images: bool = True
    """Retrieval of images by captions and of captions by images, if the recipe has images."""
    stages: Literal["all", "last"] = "all"
    """all: score the student before training and after each stage; last: after the last finished stage."""
