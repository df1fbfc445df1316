"""What the fuzzer does to a file that is right: values that no file should have, and bytes that are damaged."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from jasper_jax.runtime.errors import UserError

ODD: list[Any] = [
    *(None, True, -1, 0, 1, 3, 2**30, 2**31 - 1, 2**63, 10**30, 1e308, float("nan"), float("inf"), 1e-9),
    *("", "../x", "/dev/zero", "/etc/passwd", "\0", "\x1b[2J", "${oc.env:HOME}", "\ud800", "a" * 100_000, "os.system"),
    *([], {}, [[]], [None] * 3, {"type": "Sequence"}, {"a": {"a": {}}}, [0] * 10_000),
]


@contextlib.contextmanager
def read_or_refused(*others: type[Exception]) -> Iterator[None]:
    """The block ends well, with a UserError of one line, or with one of ``others``."""
    try:
        yield
    except UserError as error:
        assert "\n" not in str(error).strip(), f"more than a line: {error}"
        assert len(str(error)) > 10, f"says nothing: {error}"
    except others:
        pass


def paths_of(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if not isinstance(key, int) or key < 50:
            yield from paths_of(value, (*path, key))


def changed(rng: random.Random, tree: Any) -> Any:
    """``tree`` with one to three values replaced, dropped, added or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(list(paths_of(tree)))
        if not path:
            continue
        node = tree
        for key in path[:-1]:
            node = node[key]
        what = rng.random()
        if what < 0.6:
            node[path[-1]] = copy.deepcopy(rng.choice(ODD))
        elif what < 0.75:
            del node[path[-1]]
        elif isinstance(node, list):
            times = rng.choice([2, 1000])
            node *= times if len(node) * times < 20_000 else 1
        else:
            node[f"{path[-1]}x"] = copy.deepcopy(rng.choice(ODD))
    return tree


def spoilt(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, doubled, or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, what = rng.randrange(len(out) + 1), rng.random()
        if what < 0.6 and at < len(out):
            out[at] = rng.choice([rng.randrange(256), 0, 255, out[at] ^ 1 << rng.randrange(8)])
        elif what < 0.7:
            del out[at:]
        elif what < 0.85:
            out[at:at] = rng.choice([b"\xff" * 8, b"[" * 5000, b"\0" * 100, b'"', b"\n" * 100, bytes(rng.randrange(9))])
        else:
            out += out[at : at + 200]
    return bytes(out)


def hostile_json(rng: random.Random, tree: Any) -> bytes:
    """A file that nearly is the JSON file of ``tree``."""
    data = json.dumps(changed(rng, tree) if rng.random() < 0.8 else tree).encode()
    return spoilt(rng, data) if rng.random() < 0.25 else data
