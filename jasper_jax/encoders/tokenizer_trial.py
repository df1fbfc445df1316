"""Tries a tokenizer.json in a process that it may kill: ``python -m jasper_jax.encoders.tokenizer_trial``.

The file comes by standard input; the last line of the output is JSON: null, or what is wrong.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

MEMORY = 8 << 30
"""Bytes of address space."""
SECONDS = 60
"""Of the processor."""
GROWTH = 100
"""The most tokens, or characters after normalization, for a character."""


def main() -> None:
    """Load the tokenizer and encode the texts, within limits of memory and time that end the process."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows; limits that are lower already
        pass
    try:
        fault = trial(sys.stdin.buffer.read())
    except BaseException as error:  # noqa: BLE001  (a PanicException is no Exception)
        fault = " ".join(str(error).split())[:200] or type(error).__name__
    print("\n" + json.dumps(fault))


def trial(data: bytes) -> str | None:
    """What is wrong with a tokenizer, None: nothing that its texts show."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_buffer(data)
    backend.no_padding()
    tree = json.loads(data)
    for text in ["", *trial_texts([tree.get(key) for key in ("normalizer", "pre_tokenizer", "post_processor")])]:
        most = GROWTH * (len(text) + 10)
        if backend.normalizer is not None and (length := len(backend.normalizer.normalize_str(text))) > most:
            return f"its normalizer makes {length:,} characters of {len(text):,}"
        if (length := len(backend.encode(text))) > most:
            return f"it makes {length:,} tokens of {len(text):,} characters"
    return None


def parts_of(tree: Any) -> Iterator[Mapping[str, Any]]:
    """All objects of a JSON value."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            yield value
        waiting += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []


def trial_texts(steps: Any) -> list[str]:
    """Texts that a pattern of the file may find hard: what it is made of, often, and something else at the end."""
    patterns = []
    for part in parts_of(steps):
        found = part.get("pattern")
        values = found.values() if isinstance(found, Mapping) else ()
        patterns += [text for text in (part.get("content"), *values) if isinstance(text, str) and text]
    letters = sorted({letter for text in patterns[:200] for letter in re.sub(r"\\.", "", text)[:500]})[:64]
    units = [*letters, "a", "A", "1", " ", "\n", "é", "漢", "👩‍👩‍👧", "\ufdfa"]
    hard = [unit * 2000 + end for unit in units for end in "!c"]
    mixed = ["The 3 quick-brown  foxes' 1,234.5\t\n  don't… naïve “œuvre” 東京 مرحبا 👋🏽 " * 40, "".join(letters) * 50]
    return [*hard, *mixed, *(text[:4000] * 20 for text in patterns[:20])]


if __name__ == "__main__":
    main()
