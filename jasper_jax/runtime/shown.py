"""Text from outside as it may be shown: without control characters, and without the secrets of addresses.

Every message passes through :func:`shown`: ``UserError`` does it for its text, ``runtime.console`` for what commands
print. Files that leave the machine use :func:`redacted`.
"""

from __future__ import annotations

import re

_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction of writing
    "\u2028\u2029\ufff9-\ufffb\U000e0000-\U000e007f"  # line ends, annotations, invisible tags
    "\ud800-\udfff]"  # halves of surrogate pairs
)
_TOKEN = re.compile(r"\bhf_(oauth_|jwt_)?[A-Za-z0-9]{24,}[\w.-]*|\bBearer [^\s'\"]{8,}")
"""Access tokens of the hub, and whatever is in the header that sends one."""
_KEY = re.compile(r"[\w.~%-]+=")
_ENDING = "\"'),.;:>]"
HIDDEN = "***"
"""What stands for a secret."""


def visible(text: str) -> str:
    r"""``text`` with each control character as its escape (``\x1b``); newlines and tabs stay."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def redacted(text: str) -> str:
    """``text`` without access tokens, and without credentials and query strings of its addresses:
    ``s3://***@bucket/x?***``."""
    text = _TOKEN.sub(HIDDEN, text)
    if "://" not in text and "?" not in text:
        return text
    return "".join(_redacted_word(word) for word in re.split(r"(\s+)", text))


def shown(text: str) -> str:
    """``text`` as it may be printed: :func:`visible` and :func:`redacted`."""
    return redacted(visible(text))


def _redacted_word(word: str) -> str:
    scheme, mark, rest = word.partition("://")
    if not mark:
        base, query, parameters = word.partition("?")
        return base + _hidden(query, parameters) if _KEY.match(parameters) else word
    user, at, host = rest.rpartition("@")
    authority, slash, path = rest.partition("/")
    if at and ":" in user:  # a password may contain / and @
        rest = f"{HIDDEN}@{host}"
    elif "@" in authority:
        rest = f"{HIDDEN}@{authority.rpartition('@')[2]}{slash}{path}"
    base, query, parameters = rest.partition("?")
    if not query:
        base, query, parameters = rest.partition("#")
        if not _KEY.match(parameters):
            return f"{scheme}{mark}{rest}"
    return f"{scheme}{mark}{base}{_hidden(query, parameters)}"


def _hidden(mark: str, parameters: str) -> str:
    """The punctuation after an address stays."""
    return f"{mark}{HIDDEN}{parameters[len(parameters.rstrip(_ENDING)) :]}"
