"""Text from outside in Markdown, where it could be HTML, a link or the end of a table: it stays text.

A name stands as it is, anything else as a code span (CommonMark 6.1), in which nothing has a meaning; escapes would not
do, since GitHub's Markdown and its relatives look for addresses in what is left after them.
"""

from __future__ import annotations

import re

from jasper_jax.runtime.shown import shown

_NAME = re.compile(r"[\w .,%±→–()@-]*")
_LINK = re.compile(r"www\.|@.*\.", re.IGNORECASE)


def markdown_text(text: str) -> str:
    """``text`` if it is a name of letters, digits and some punctuation that no program takes for a link, else
    :func:`code_span`."""
    return text if _NAME.fullmatch(text) and not _LINK.search(text) else code_span(text)


def code_span(text: str) -> str:
    """``text`` as a code span in one line, which may stand in a cell of a table.

    The fence is longer than any run of backticks in ``text``. Line ends become spaces; a vertical bar, which would end
    the cell even here, becomes U+2502.
    """
    line = " ".join(shown(text).split()).replace("|", "\u2502")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if not line or line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"
