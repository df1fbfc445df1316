"""``${key}`` in a recipe: the value of another key of the same recipe. There is no other substitution.

A recipe comes from a colleague or a bucket, and its values go to addresses, cards and checkpoints. So nothing of the
machine can be named in it: no environment variables, files or functions. (Paths of local files may have ``$NAME``,
which ``runtime.paths`` replaces when it opens them; the recipe keeps the name.)
"""

from __future__ import annotations

import re
from typing import Any

from jasper_jax.recipe.yaml_text import DEEPEST
from jasper_jax.runtime.errors import UserError

_REFERENCE = re.compile(r"\$\{([\w-]+(?:\.[\w-]+|\[-?\d+\])*)\}")
MOST = 200_000
"""Characters and values that references may make in all; references to references can double at every step."""


def resolve_references(tree: Any, where: str) -> Any:
    """``tree`` with every ``${key}`` replaced by the value of that key: ``${heads.fc1.dim}``, ``${stages[0].steps}``.

    A string that is one reference takes the value as it is; within a longer string it must be a number or a string.

    Raises:
      UserError: anything else that begins with ``${``, an unknown key, a circle, or more than ``MOST`` characters.
    """
    try:
        return _References(tree, where).value(tree)
    except RecursionError:
        raise UserError(f"{where}: the values or their references ${{key}} are nested too deeply") from None


class _References:
    def __init__(self, tree: Any, where: str):
        self._tree, self._where = tree, where
        self._open: list[str] = []
        """The keys whose values are being replaced, the outermost first."""
        self._made = self._level = 0

    def value(self, node: Any, level: int = 0) -> Any:
        self._level = level  # at which a reference puts what it stands for
        if isinstance(node, dict | list) and level == DEEPEST:
            raise RecursionError
        if isinstance(node, dict):
            return {key: self.value(item, level + 1) for key, item in self._counted(node).items()}
        if isinstance(node, list):
            return [self.value(item, level + 1) for item in self._counted(node)]
        return self._string(node) if isinstance(node, str) and "${" in node else self._counted(node)

    def _string(self, text: str) -> Any:
        if "${" in _REFERENCE.sub("", text):
            raise UserError(
                f"{self._where}: {text[:80]!r}: only ${{key}} is replaced, by the value of that key of the recipe;"
                f" environment variables are read in paths of local files alone, as $NAME"
            )
        if whole := _REFERENCE.fullmatch(text):
            return self._lookup(whole[1])
        return self._counted(_REFERENCE.sub(lambda found: self._scalar(found[1]), text))

    def _scalar(self, key: str) -> str:
        value = self._lookup(key)
        if isinstance(value, dict | list):
            raise UserError(f"{self._where}: ${{{key}}} is a {type(value).__name__}, which a string cannot contain")
        return str(value)

    def _lookup(self, key: str) -> Any:
        if key in self._open:
            raise UserError(f"{self._where}: ${{{key}}} refers to itself: {' -> '.join([*self._open, key])}")
        node = self._tree
        for part in re.findall(r"[\w-]+", key):
            try:
                node = node[int(part) if isinstance(node, list) else part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise UserError(
                    f"{self._where}: ${{{key}}}: the recipe has no such key; in paths of local files an environment"
                    f" variable is $NAME"
                ) from None
        self._open.append(key)
        value = self.value(node, self._level)
        self._open.pop()
        return value

    def _counted(self, value: Any) -> Any:
        """``value``, a scalar or a collection whose items are counted beside it. UserError: too much was made."""
        if self._open:
            self._made += 1 + (len(value) if isinstance(value, str) else 0)
            if self._made > MOST:
                raise UserError(f"{self._where}: the references ${{key}} make more than {MOST:,} characters")
        return value
