"""Valid JSON trees with something wrong in them: the inputs of the tests in ``test_fuzz.py``."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**7, -(10**7), 2**63, 10**30]),
    st.floats(),
    st.text(st.characters(exclude_characters="/"), max_size=4),  # org/name would be asked of the hub
    st.sampled_from(["../x", "/", "\0", "${name}", "{k}", "**", "[", "1e999", "nan", "\ud800"]),
    st.sampled_from([[], {}, [[]], [{}], {"": 1}, {"a": None}]).map(copy.deepcopy),
)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value in ``tree``, the root's is ()."""
    found = [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


@st.composite
def mutated(draw: st.DrawFn, tree: Any, most: int = 3) -> Any:
    """``tree`` with 1 to ``most`` of: a value replaced, a key dropped, a key added, a value moved elsewhere."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        *parents, last = draw(st.sampled_from(places(tree)[1:] or [("",)]))
        node = tree
        for key in parents:
            node = node[key]
        if not isinstance(node, dict | list):
            return draw(ODD)
        what = draw(st.sampled_from(["replace", "replace", "drop", "add", "move"]))
        if what == "drop" and node:
            del node[last]
        elif what == "add" and isinstance(node, dict):
            node[draw(st.sampled_from([f"{last}x", "", "."]))] = draw(ODD)
        elif what == "move":
            source: Any = tree
            for key in draw(st.sampled_from(places(tree))):
                source = source[key]
            node[last] = copy.deepcopy(source)
        else:
            node[last] = draw(ODD)
    return tree


@st.composite
def spoilt(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` cut short, with bytes changed, or with bytes put in."""
    at = draw(st.integers(0, len(data)))
    junk = draw(
        st.one_of(st.binary(max_size=6), st.sampled_from([b"\xff", b"\0", b"[" * 3000, b"\xef\xbb\xbf", b"\n"]))
    )
    return data[:at] + junk + data[at + draw(st.sampled_from([0, 1, len(junk), len(data)])) :]


def as_json(tree: Any) -> bytes:
    """JSON as Python writes it: NaN and lone surrogates included."""
    return json.dumps(tree).encode()


def json_files(tree: Any) -> st.SearchStrategy[bytes]:
    """Files that nearly are the JSON file of ``tree``."""
    return st.one_of(mutated(tree).map(as_json), spoilt(as_json(tree)))
