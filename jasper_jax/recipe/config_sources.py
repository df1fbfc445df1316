"""The recipe's sources of texts and images, and the types that all its sections share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Dimension = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegative = Annotated[float, Field(ge=0.0)]
Kind = Literal["query", "passage"]


class Section(BaseModel):
    """A section of the recipe: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Section):
    """A source of one of several kinds; the key that is set selects the kind."""

    def only(self, kinds: tuple[str, ...]) -> str:
        """The one of ``kinds`` that is set; ValueError for none or several."""
        names = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(names) != 1:
            raise ValueError(f"expected exactly one of {', '.join(kinds)}, got {', '.join(names) or 'none'}")
        return names[0]

    def refuse(self, keys: tuple[str, ...], kind: str) -> None:
        """ValueError if one of ``keys``, which have no meaning for a source of ``kind``, is set."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no meaning for a source of {kind}; remove it")


class TextSource(Source):
    """A source of texts: exactly one of ``text``, ``jsonl``, ``parquet``, ``tfds``, ``hf``, ``asset`` is set."""

    text: str | None = None
    """A text file with one text per line (or a glob, as for ``jsonl`` and ``parquet``)."""
    jsonl: str | None = None
    """A file with a JSON object in each line."""
    parquet: str | None = None
    """A Parquet file."""
    tfds: str | None = None
    """A TFDS builder name (``name/config``) or the folder of a prepared data set; readable without TensorFlow."""
    hf: str | None = None
    """A data set for the ``datasets`` library: a hub name or a local folder."""
    asset: str | None = None
    """A named corpus: ``jasper assets`` lists them."""
    split: str | list[str] | None = None
    """Split of a TFDS, Hugging Face or asset source; several as a list (SQuAD-shifts has one per domain)."""
    config: str | None = None
    """Of a TFDS or Hugging Face data set."""
    column: str | list[str] = "text"
    """The column or columns of the text; each element of a list in a cell is a text."""
    kind: Kind | None = None
    """None: from ``kind_column`` or the asset, else passage."""
    kind_column: str | None = None
    """The column that says ``query`` or ``passage``."""
    weight: PositiveFloat = 1.0
    """Share of the documents from this source, relative to the other sources' weights."""
    limit: PositiveInt | None = None
    """Use only this many documents, the first of the shuffled source."""

    @model_validator(mode="after")
    def _one_source(self) -> TextSource:
        kind = self.only(SOURCE_KINDS)
        self.refuse(_NOT_FOR[kind], kind)
        return self


FILE_KINDS = ("text", "jsonl", "parquet")
"""The kinds of source that name files of this machine; the others are data sets with versions of their own."""
SOURCE_KINDS = (*FILE_KINDS, "tfds", "hf", "asset")
_NOT_FOR = {
    "text": ("split", "config", "column", "kind_column"),
    "jsonl": ("split", "config"),
    "parquet": ("split", "config"),
    "tfds": (),
    "hf": (),
    "asset": ("config", "column", "kind_column"),
}


class PairSource(Source):
    """A source of labelled pairs: exactly one of ``jsonl``, ``csv``, ``parquet``, ``hf``, ``asset``, ``beir``."""

    jsonl: str | None = None
    """A file (or a glob, as for ``csv`` and ``parquet``)."""
    csv: str | None = None
    """With a header line; separated by tabs if the name ends in ``.tsv``."""
    parquet: str | None = None
    """A Parquet file."""
    hf: str | None = None
    """A data set for the ``datasets`` library: a hub name or a local folder."""
    asset: str | None = None
    """A corpus with questions: ``squad-shifts``."""
    beir: str | None = None
    """A folder with corpus.jsonl, queries.jsonl and ``qrels/<split>.tsv``, by default ``qrels/train.tsv``."""
    split: str | list[str] | None = None
    """Of a Hugging Face, asset or BEIR source; several as a list."""
    config: str | None = None
    """Of a Hugging Face data set."""
    query: str = "query"
    """The column of the query."""
    passage: str = "passage"
    """The column of the passage that answers it."""
    negatives: str | list[str] | None = None
    """The column or columns of passages that do not; each element of a list in a cell is one."""
    score: str | None = None
    """The column of the label's weight in the loss, from 0 (dropped) to 1; None: 1 for every pair."""
    weight: PositiveFloat = 1.0
    """Share of the pairs of each batch from this source, relative to the other sources' weights."""
    limit: PositiveInt | None = None
    """Use only this many pairs, a sample chosen by hash."""

    @model_validator(mode="after")
    def _one_source(self) -> PairSource:
        kind = self.only(PAIR_SOURCE_KINDS)
        self.refuse(_NOT_FOR_PAIRS[kind], kind)
        return self


PAIR_FILE_KINDS = ("jsonl", "csv", "parquet")
PAIR_SOURCE_KINDS = (*PAIR_FILE_KINDS, "hf", "asset", "beir")
_COLUMNS = ("query", "passage", "negatives", "score")
_NOT_FOR_PAIRS = {
    "jsonl": ("split", "config"),
    "csv": ("split", "config"),
    "parquet": ("split", "config"),
    "hf": (),
    "asset": ("config", *_COLUMNS),
    "beir": ("config", *_COLUMNS),
}


class Augment(Section):
    """The paper's augmentation (section 3): some documents are split, the words of some texts shuffled."""

    split_share: Share = 0.3
    """Share of the passages split into pieces of ``min_sentences`` to ``max_sentences`` sentences."""
    min_sentences: PositiveInt = 1
    """Fewest sentences of a piece of a divided document."""
    max_sentences: PositiveInt = 10
    """Most sentences of such a piece."""
    shuffle_share: Share = 0.0008
    """Share of the texts whose words are shuffled."""
    language: Literal[
        "am", "ar", "bg", "bn", "ca", "da", "de", "el", "en", "es", "fi", "fr", "gu", "hi", "hy", "it", "ja", "kk",
        "kn", "ml", "mr", "my", "nl", "pa", "pl", "pt", "ru", "sk", "ta", "te", "uk",
    ] = "en"  # fmt: skip
    """The sentence splitter's language; it would treat any other code as en. en also ends sentences at the full stops
    of other scripts."""

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if self.min_sentences > self.max_sentences:
            raise ValueError(f"min_sentences {self.min_sentences} is larger than max_sentences {self.max_sentences}")
        return self


class Texts(Section):
    """The content of the text store."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of the selection, order and augmentation of texts; None: the recipe's. Set it to train with another ``seed``
    on the same texts."""
    sources: list[TextSource] = Field(default_factory=list)
    """Unlabelled texts."""
    pairs: list[PairSource] = Field(default_factory=list)
    """Labelled pairs of a query and a passage that answers it. Their texts are rows of the store like those of
    ``sources``, in addition to ``count`` and ``held_out``, and are not augmented."""
    count: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Texts of ``sources`` for training; None: all."""
    held_out: Annotated[int, Field(ge=0)] = 500
    """Texts of ``sources`` held out for losses and agreement: complete documents, selected by hash."""
    held_out_pairs: Annotated[int, Field(ge=0)] = 500
    """Pairs held out for losses and retrieval: all pairs of a passage and of its queries, selected by hash."""
    near_duplicates: Annotated[float, Field(gt=0.1, lt=1)] | None = None
    """Leave out texts that share about this part of their shingles of five characters with one before them (Jaccard
    similarity, by MinHash), e.g. 0.8, and keep those held out as far from training; None: equal texts alone."""
    shuffle_buffer: PositiveInt = 100_000
    """Documents of a source that are shuffled in memory together."""
    max_chars: PositiveInt = 20_000
    """Longer texts are truncated and counted."""
    shard_rows: PositiveInt = 1024
    """Rows of a shard, the unit of work of ``jasper embed``."""
    augment: Augment = Augment()
    """Which documents are divided, and which texts have their words shuffled."""

    @model_validator(mode="after")
    def _some(self) -> Texts:
        if not self.sources and not self.pairs:
            raise ValueError("expected at least one of sources and pairs; set texts.sources")
        return self


class ImageSource(Source):
    """A source of image-caption pairs; exactly one of ``folder``, ``webdataset``, ``tfds``, ``hf``, ``asset``."""

    folder: str | None = None
    """A folder of image files; needs ``captions``."""
    captions: str | None = None
    """JSONL or Parquet in ``folder``, with the images' relative paths in the column ``image``."""
    webdataset: str | None = None
    """Tar files (or a glob) whose members are paired by name; ``image`` and ``caption`` are their extensions."""
    tfds: str | None = None
    """A TFDS builder name (``name/config``) or the folder of a prepared data set."""
    hf: str | None = None
    """A data set for the ``datasets`` library: a hub name or a local folder."""
    asset: str | None = None
    """A named collection: ``jasper assets`` lists them."""
    split: str | None = None
    """Of a TFDS or Hugging Face data set."""
    config: str | None = None
    """Of a Hugging Face data set."""
    image: str | None = None
    """Column (or extension) of the image; None: ``image`` (WebDataset: jpg, jpeg, png or webp)."""
    caption: str | None = None
    """Column (or extension) of the caption; None: ``caption`` (WebDataset: txt)."""
    group: str | None = None
    """Column of the group; all images of a group are on one side of a split. openmoji: ``tone`` groups emoji that
    differ in skin tone only, None those that differ in hair, gender or direction too."""
    tones: bool | None = None
    """openmoji: false skips the emoji with a skin tone other than yellow, half of all pairs."""
    limit: PositiveInt | None = None
    """Use only this many pairs."""

    @model_validator(mode="after")
    def _one_source(self) -> ImageSource:
        kind = self.only(IMAGE_SOURCE_KINDS)
        if (self.captions is None) != (self.folder is None):
            raise ValueError("folder and captions belong together; set both")
        self.refuse(_NOT_FOR_IMAGES[kind], kind)
        if self.asset and self.group not in (None, "tone"):
            raise ValueError(f"group {self.group!r} is not a grouping of {self.asset}; set tone, or remove it")
        return self


IMAGE_SOURCE_KINDS = ("folder", "webdataset", "tfds", "hf", "asset")
_NOT_FOR_IMAGES = {
    "folder": ("split", "config", "tones"),
    "webdataset": ("split", "config", "group", "tones"),
    "tfds": ("config", "tones"),
    "hf": ("tones",),
    "asset": ("split", "config", "image", "caption"),
}


class Images(Section):
    """The image-caption pairs of stage 4."""

    sources: Annotated[list[ImageSource], Field(min_length=1)]
    """Mixed into one store of pairs."""
    held_out: Annotated[int, Field(ge=0)] = 200
    """Pairs held out for losses and retrieval during development: complete groups, selected by hash."""
    test: Annotated[int, Field(ge=0)] = 500
    """Further pairs held out for the reported retrieval."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of the split; None: the recipe's. Set it to train with another ``seed`` on the same pairs."""
    skip_share: Share = 0.01
    """Largest share of undecodable images and empty captions; they are skipped and counted."""
    max_pixels: PositiveInt = 64_000_000
    """Larger images are rejected before decoding (decompression bombs)."""
    shard_rows: PositiveInt = 256
    """Pairs of a shard."""
