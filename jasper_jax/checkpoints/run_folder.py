"""The folder of one recipe's run: whose it is, who is at work in it, and its copy in object storage.

It holds ``recipe.yaml`` (resolved), ``checkpoints/``, ``metrics.jsonl``, ``evaluation.json`` and ``export/``, and the
stores of texts and vectors unless the recipe names another place for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jasper_jax.checkpoints.checkpoint import Checkpoints
from jasper_jax.checkpoints.mirror import Mirror
from jasper_jax.recipe.changes import recipe_changes
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import dump_recipe, run_dir, stores_dir
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import exclusive, refuse_blocked, write_atomic

HEADER = "# The resolved recipe of this run, written by jasper. Change the recipe it came from, not this file.\n"
NOTHING_YET = ("recipe.yaml", "timings.json", ".lock", ".texts.lock")
"""What a command leaves that was refused before it made anything: another recipe may take such a folder over."""


class RunFolder:
    """The folder of ``recipe``'s run at ``path``."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.stages = resolve_stages(recipe)
        self.path = run_dir(recipe)
        self.mirror = Mirror(recipe.mirror, self.path) if recipe.mirror else None

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """The folder for this command alone, :meth:`claim`-ed; not even a lock is left in one that is refused. Of
        several processes the first holds it for all.

        With a mirror, the folder begins as far as that is, and the mirror ends as far as the folder is.
        """
        with contextlib.ExitStack() as held:

            def take() -> None:
                self._refuse_foreign()
                if self.mirror:
                    where = self.mirror.store.where("recipe.yaml")
                    self.mirror.refuse_other(lambda recorded: recipe_changes(recorded, self.recipe, where))
                held.enter_context(exclusive(self.path, what))
                self.claim()
                if self.mirror:
                    self.mirror.attach()

            processes.first_does(take)
            yield
            if processes.is_first():
                self.push()

    def push(self) -> None:
        """Bring the mirror, where there is one, to what the folder holds."""
        if self.mirror:
            self.mirror.push()

    def claim(self) -> None:
        """Write the resolved recipe into the folder, or check that the folder's recipe is this one.

        Raises:
          UserError: the folder belongs to a run with another recipe (the differing keys are named), or holds
            something that is not a run.
        """
        self._refuse_foreign()
        path = self.path / "recipe.yaml"
        if self._wrote_recipe():
            try:
                changed = recipe_changes(_load_yaml(path), self.recipe, str(path))
            except UserError as error:
                raise UserError(f"{error}; jasper wrote this file: restore it, or set run_dir=...") from None
            if changed and any(p.name not in NOTHING_YET for p in self.path.iterdir()):
                raise UserError(
                    f"{self.path}: this run folder was made with another recipe; {'; '.join(changed[:3])}"
                    f"{' and more' if len(changed) > 3 else ''}; set run_dir=... or delete the folder"
                )
        try:
            write_atomic(path, HEADER + dump_recipe(self.recipe))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints; the mirror follows whenever one is complete."""
        return Checkpoints(
            self.path / "checkpoints",
            [stage.name for stage in self.stages],
            self.recipe.training.keep,
            other_recipe=lambda recorded, path: recipe_changes(recorded, self.recipe, str(path)),
            after=self.push,
        )

    def _wrote_recipe(self) -> bool:
        path = self.path / "recipe.yaml"
        return path.is_file() and path.read_bytes().startswith(HEADER.encode())

    def _refuse_foreign(self) -> None:
        """UserError when the folder holds what no run wrote, or it or the stores cannot be there."""
        for key, folder in (("run_dir", self.path), ("stores", stores_dir(self.recipe))):
            refuse_blocked(folder / "recipe.yaml", f"choose another with {key}=...")
        # Listed before the recipe is looked for: another process may be writing it.
        names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        foreign = [n for n in names if n != ".lock" and not (n.startswith(".recipe.yaml.") and n.endswith(".tmp"))]
        if foreign and not self._wrote_recipe():
            raise UserError(
                f"{self.path}: not empty and not a run folder (no recipe.yaml that a run wrote);"
                f" choose another with run_dir=..."
            )


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not valid YAML ({first})") from None
