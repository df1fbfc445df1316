"""YAML of recipes: ``1e-4`` is a number; no dates, no tags, no key twice, and no small text that means a large tree."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml
from yaml.constructor import ConstructorError

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.text_files import text_of

MOST_NODES = 20_000
"""Values and keys of a document, those of an alias counted wherever it stands ("billion laughs")."""
DEEPEST = 100
"""Levels of lists and mappings; a recipe has ten, and what writes it again calls itself for each."""
_LONGEST_INTEGER = 100
"""Characters of a whole number; Python does not print those of more than 4,300 digits."""
_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map", "merge"))
_FLOAT = re.compile(
    r"""^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it


class _Loader(_Base):
    def construct_document(self, node: yaml.Node) -> Any:
        _count(node, {}, set())
        return super().construct_document(node)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that ``_Loader`` would take for a number."""


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """With escapes where PyYAML would write a line end of Unicode as it is, and read back a space."""
    escaped = any(end in text for end in "\x85\u2028\u2029")
    return dumper.represent_scalar(f"{_TAG}str", text, style='"' if escaped else None)


_Dumper.add_representer(str, _string)
# What a recipe made in Python may have beside plain values.
_Dumper.add_multi_representer(PurePath, lambda dumper, path: _string(dumper, str(path)))
_Dumper.add_multi_representer(np.generic, lambda dumper, number: dumper.represent_data(number.item()))
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in rules if tag[len(_TAG) :] not in ("timestamp", "float", "value")]
        for first, rules in _kind.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path, where: str, expected: str) -> Any:
    """The content of a YAML or JSON file beside a recipe.

    ``where``: how messages name it. ``expected``: what it should be, if there is none.

    Raises:
      UserError: no such file, or not YAML.
    """
    if not path.is_file():
        raise UserError(f"{where}: no such file; expected a YAML or JSON file of {expected}")
    try:
        return parse_yaml(text_of(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not YAML or JSON ({' '.join(str(error).split())})") from None


def parse_yaml(text: str | bytes) -> Any:
    """The tree that ``text`` means: dicts, lists, strings, numbers, booleans and None.

    Raises:
      yaml.YAMLError, ValueError, RecursionError: it is not YAML, has a key twice or a tag, refers to itself, is more
        than ``DEEPEST`` levels deep, has a whole number of more than ``_LONGEST_INTEGER`` characters, or more than
        ``MOST_NODES`` nodes with its aliases written out.
    """
    return _unshared(yaml.load(text, Loader=_Loader))


def dump_yaml(tree: Any) -> str:
    """``tree`` as YAML from which :func:`parse_yaml` makes an equal one."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _unshared(tree: Any) -> Any:
    """A copy in which an alias is another object than its anchor, so that an override changes one of them."""
    if isinstance(tree, dict):
        return {key: _unshared(value) for key, value in tree.items()}
    return [_unshared(value) for value in tree] if isinstance(tree, list) else tree


def _count(node: yaml.Node, counts: dict[yaml.Node, tuple[int, int]], above: set[yaml.Node]) -> tuple[int, int]:
    """The nodes and the levels of ``node`` with aliases written out; ``counts`` has those of nodes seen before,
    ``above`` those that contain this one."""
    if node in counts:
        return counts[node]
    if node in above:
        raise _refused("an alias refers to what contains it", node)
    if node.tag not in _TAGS:
        raise _refused(f"the tag {node.tag.replace(_TAG, '!!')} is not allowed", node)
    if node.tag == f"{_TAG}int" and len(node.value) > _LONGEST_INTEGER:
        raise _refused(f"a whole number of {len(node.value):,} characters; at most {_LONGEST_INTEGER}", node)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    above.add(node)
    below = [_count(child, counts, above) for child in children]
    above.remove(node)
    total, levels = 1 + sum(nodes for nodes, _ in below), 1 + max((depth for _, depth in below), default=0)
    if total > MOST_NODES:
        raise _refused(f"more than {MOST_NODES:,} values, with aliases written out", node)
    if levels > DEEPEST:
        raise _refused(f"more than {DEEPEST} levels of lists and mappings, with aliases written out", node)
    counts[node] = total, levels
    return counts[node]


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    keys = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            if (key.tag, key.value) in keys:
                raise _refused(f"the key {key.value} is there twice", key)
            keys.add((key.tag, key.value))


def _refused(problem: str, node: yaml.Node) -> ConstructorError:
    return ConstructorError(None, None, problem, node.start_mark)
