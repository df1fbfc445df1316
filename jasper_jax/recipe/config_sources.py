"""The recipe's part that says where texts and images come from, and what all its parts share.

A source names exactly one place; a key that has no meaning for it is refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Dimension = Annotated[int, Field(ge=1, le=1_000_000)]
NonNegative = Annotated[float, Field(ge=0.0)]
Kind = Literal["query", "passage"]


class Section(BaseModel):
    """A part of the recipe: immutable, and a key it does not know is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Source(Section):
    """One of several kinds of source: the key that is set says which."""

    def only(self, kinds: tuple[str, ...]) -> str:
        """The one of ``kinds`` that is set; ValueError where none or several are."""
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a source names exactly one of {', '.join(kinds)}; this one names {', '.join(given) or 'none'}"
            )
        return given[0]

    def refuse(self, keys: tuple[str, ...], kind: str) -> None:
        """ValueError where one of ``keys``, which mean nothing for a source of ``kind``, is set."""
        for key in keys:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no meaning for a source of {kind}; leave it out")


class TextSource(Source):
    """One source of texts. Exactly one of ``text``, ``jsonl``, ``parquet``, ``tfds``, ``hf``, ``asset`` is set."""

    text: str | None = None
    """A text file, one text a line (a glob is allowed, as for ``jsonl`` and ``parquet``)."""
    jsonl: str | None = None
    parquet: str | None = None
    tfds: str | None = None
    """A TFDS builder name (``name/config``) or the folder of a prepared data set; readable without TensorFlow."""
    hf: str | None = None
    """A data set for the ``datasets`` library: a hub name or a local folder."""
    asset: str | None = None
    """A named corpus: ``jasper assets`` lists them."""
    split: str | list[str] | None = None
    """Split of a TFDS, Hugging Face or asset source (for assets a list: SQuAD-shifts has one split a domain)."""
    config: str | None = None
    column: str | list[str] = "text"
    """The column or columns that hold the text; a list-valued cell gives one text an element."""
    kind: Kind | None = None
    """query or passage; by default what the source says (``kind_column``, or the asset itself), else passage."""
    kind_column: str | None = None
    weight: PositiveFloat = 1.0
    """Share of the documents drawn from this source, relative to the other sources' weights."""
    limit: PositiveInt | None = None

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


class Augment(Section):
    """The paper's augmentation (section 3): documents cut into short texts, words of a few texts shuffled."""

    split_share: Share = 0.3
    """Share of the passages that are divided into pieces of ``min_sentences`` to ``max_sentences`` sentences."""
    min_sentences: PositiveInt = 1
    max_sentences: PositiveInt = 10
    shuffle_share: Share = 0.0008
    """Share of the texts whose words are shuffled."""
    language: Literal[
        "am", "ar", "bg", "bn", "ca", "da", "de", "el", "en", "es", "fi", "fr", "gu", "hi", "hy", "it", "ja", "kk",
        "kn", "ml", "mr", "my", "nl", "pa", "pl", "pt", "ru", "sk", "ta", "te", "uk",
    ] = "en"  # fmt: skip
    """Whose abbreviations the sentence splitter knows; it would take any other code for en, without a word. en also
    ends sentences at the full stops of other scripts."""

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if self.min_sentences > self.max_sentences:
            raise ValueError(f"min_sentences {self.min_sentences} is larger than max_sentences {self.max_sentences}")
        return self


class Texts(Section):
    """What becomes the text store."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of the choice, order and augmentation of texts; None: the recipe's. Set it to repeat a training with
    another ``seed`` on the same texts."""
    sources: Annotated[list[TextSource], Field(min_length=1)]
    count: PositiveInt | None = None
    """Texts for training; None takes all that the sources give."""
    held_out: Annotated[int, Field(ge=0)] = 500
    """Texts kept out of training for the loss and the agreement on unseen texts; whole documents, by hash."""
    shuffle_buffer: PositiveInt = 100_000
    """Documents of a source that are shuffled in memory at a time."""
    max_chars: PositiveInt = 20_000
    """Longer texts are cut here (counted); a tokenizer would truncate them anyway."""
    shard_rows: PositiveInt = 1024
    """Rows of a shard, the unit of work of ``jasper embed``."""
    augment: Augment = Augment()


class ImageSource(Source):
    """One source of image-caption pairs: exactly one of ``folder``, ``webdataset``, ``tfds``, ``hf``, ``asset``."""

    folder: str | None = None
    """A folder of image files; ``captions`` names the file that pairs them with texts."""
    captions: str | None = None
    """JSONL or Parquet, inside ``folder``: column ``image`` is a path relative to the folder."""
    webdataset: str | None = None
    """Tar files (a glob is allowed) whose members pair by name: ``image`` and ``caption`` are their extensions."""
    tfds: str | None = None
    """A TFDS builder name (``name/config``) or the folder of a prepared data set."""
    hf: str | None = None
    """A data set for the ``datasets`` library: a hub name or a local folder."""
    asset: str | None = None
    """A named collection: ``jasper assets`` lists them."""
    split: str | None = None
    config: str | None = None
    image: str | None = None
    """Column (or extension) of the image; None: ``image`` (WebDataset: jpg, jpeg, png or webp)."""
    caption: str | None = None
    """Column (or extension) of the caption; None: ``caption`` (WebDataset: txt)."""
    group: str | None = None
    """Column that tells which images belong together; those of one group never lie on both sides of a split. Of
    openmoji: ``tone`` for emoji that differ in skin tone alone, None where hair, gender or direction may differ too."""
    tones: bool | None = None
    """Of openmoji: false leaves out the emoji whose skin has another colour than yellow, half of all training pairs."""
    limit: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ImageSource:
        kind = self.only(IMAGE_SOURCE_KINDS)
        if (self.captions is None) != (self.folder is None):
            raise ValueError("folder and captions belong together: the images, and the file in it that pairs them")
        self.refuse(_NOT_FOR_IMAGES[kind], kind)
        if self.asset and self.group not in (None, "tone"):
            raise ValueError(f"group {self.group!r} is no grouping of {self.asset}; tone is, or leave it out")
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
    """Image-caption pairs, for a stage that teaches the student images."""

    sources: Annotated[list[ImageSource], Field(min_length=1)]
    held_out: Annotated[int, Field(ge=0)] = 200
    """Pairs kept out of training for losses and retrieval while settings are chosen; whole groups, by hash."""
    test: Annotated[int, Field(ge=0)] = 500
    """Pairs kept out of both for the retrieval that is reported."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    """Seed of the split; None: the recipe's. Set it to repeat a training with another ``seed`` on the same pairs."""
    skip_share: Share = 0.01
    """Images that do not decode, and captions that are empty, are left out and counted up to this share."""
    max_pixels: PositiveInt = 64_000_000
    """Larger images are refused before they are decoded (decompression bombs)."""
    shard_rows: PositiveInt = 256
