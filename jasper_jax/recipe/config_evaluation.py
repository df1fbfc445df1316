"""The section ``evaluation`` of a recipe: what a run is scored by."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, model_validator

from jasper_jax.recipe.config_sources import Name, PairSource, Section


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
    pairs: PairSource | None = None
    """A file of queries, each with a passage that answers it, e.g. ``{csv: my.csv}``; all its passages are ranked."""
    passages: PositiveInt | None = None
    """Use only this many passages, the first by sorted id."""
    queries_per_passage: PositiveInt | None = None
    """Use only this many queries of each passage, the first by sorted id."""

    @model_validator(mode="after")
    def _one(self) -> Retrieval:
        if sum(source is not None for source in (self.asset, self.beir, self.pairs)) != 1:
            raise ValueError("expected exactly one of asset, beir and pairs")
        if self.pairs is not None and (self.pairs.limit is not None or self.pairs.weight != 1):
            raise ValueError("limit and weight of pairs are for training; remove them (passages makes a test smaller)")
        return self


class Similarity(Section):
    """A test of semantic similarity: pairs of texts with judgements, whose order the vectors' cosines should have."""

    name: Name
    """Of its column in tables."""
    pairs: PairSource
    """A file of pairs with their judgements, e.g. ``{csv: sts.csv, query: one, passage: other, score: score}``."""

    @model_validator(mode="after")
    def _judged(self) -> Similarity:
        if self.pairs.score is None:
            raise ValueError("pairs need score: the column of the judgements, any numbers, the more similar the higher")
        if self.pairs.limit is not None or self.pairs.weight != 1 or self.pairs.negatives is not None:
            raise ValueError("limit, weight and negatives of pairs are for training; remove them")
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
