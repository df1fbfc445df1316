"""The folder of a recipe's run: which recipe owns it, its lock, and its copy in object storage.

It holds ``recipe.yaml`` (resolved), ``checkpoints/``, ``metrics.jsonl``, ``evaluation.json``, ``export/``, and the
stores of texts and vectors unless the recipe sets another folder for them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jasper_jax.checkpoints.checkpoint import Checkpoints
from jasper_jax.checkpoints.mirror import Mirror
from jasper_jax.recipe.changes import recipe_changes, yaml_changes
from jasper_jax.recipe.config import Recipe
from jasper_jax.recipe.load import HEADER, dump_recipe, run_dir, stores_dir
from jasper_jax.recipe.stages import resolve_stages
from jasper_jax.recipe.yaml_text import parse_yaml
from jasper_jax.runtime import processes
from jasper_jax.runtime.bounded import read_record_bytes
from jasper_jax.runtime.errors import UserError, first_three
from jasper_jax.runtime.files import AT_WORK, exclusive, refuse_blocked, write_atomic
from jasper_jax.runtime.inside import leads_out
from jasper_jax.runtime.shell import shell_word

TRAINED = ("checkpoints", "metrics.jsonl", "evaluation.json", "export")
"""What depends on the whole recipe; in a folder without any, another recipe may take over. Stores of texts and vectors
refuse what they were not made for themselves."""
WRITTEN = (
    *("checkpoints", "evaluations", "export", "exports", "tensorboard", "wandb", "profile", "token_counts"),
    "captions",
)
"""Folders in which files are replaced and deleted by their names alone, and new ones are written, in folders below."""
STORES = ("texts", "images", "vectors", "negatives", "evaluation")
"""Folders whose texts a card, a report and a mirror may show."""


class RunFolder:
    """The folder of ``recipe``'s run at ``path``."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.stages = resolve_stages(recipe)
        self.path = run_dir(recipe)
        self.mirror = Mirror(recipe.mirror, self.path) if recipe.mirror else None

    @contextlib.contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Lock and :meth:`claim` the folder for the command ``what``; nothing is written if that is refused. Process 0
        holds the lock for all.

        With a mirror, newer checkpoints are copied from it first, and the mirror is updated at the end.
        """
        with contextlib.ExitStack() as lock:

            def acquire() -> None:
                self._refuse_foreign()
                if self.mirror:
                    self.mirror.refuse_other(self.recipe)
                lock.enter_context(exclusive(self.path, what))
                self.claim(locked=True)
                if self.mirror:
                    self.mirror.attach()

            processes.first_does(acquire)
            yield
            if processes.is_first():
                self.push()

    def push(self) -> None:
        """Update the mirror, if there is one."""
        if self.mirror:
            self.mirror.push()

    def claim(self, *, locked: bool = False) -> None:
        """Write the resolved recipe into the folder. ``locked``: this process holds its lock.

        Raises:
          UserError: the folder belongs to a run with another recipe (the differing keys are named), or is not a run's.
        """
        self._refuse_foreign()
        path = self.path / "recipe.yaml"
        if self._wrote_recipe():
            remedy = "jasper wrote this file: restore it, or set run_dir=..."
            changed = yaml_changes(read_record_bytes(path), self.recipe, str(path), remedy)
            if changed and any((self.path / name).exists() for name in TRAINED):
                raise UserError(
                    f"{self.path}: this run folder was made with another recipe; {first_three(changed)};"
                    f" {self._elsewhere(path, changed)}"
                )
            if changed and not locked:
                with exclusive(self.path, "embed"):
                    return self.claim(locked=True)
        try:
            write_atomic(path, HEADER + dump_recipe(self.recipe))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None

    def _elsewhere(self, recorded: Path, changed: Sequence[str]) -> str:
        """How to train the recipe in another folder, with the stores of this one where they fit."""
        keys = {change.partition(" ")[0] for change in changed}
        advice = "set run_dir=... to another folder"
        if not any(key.startswith(("texts", "images")) for key in keys):
            before = parse_yaml(read_record_bytes(recorded))
            stores = before.get("stores") or self.path
            seed = f" texts.seed={before['seed']}" if "seed" in keys and self.recipe.texts is not None else ""
            advice += f" and stores={shell_word(stores)}{seed} to use the texts and vectors that are there"
        if any(key.endswith(".steps") for key in keys):
            advice += "; to train this run on, leave its stages as they are and add one"
        return advice

    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints, each copied to the mirror when complete."""
        return Checkpoints(
            self.path / "checkpoints",
            [stage.name for stage in self.stages],
            self.recipe.training.keep,
            other_recipe=lambda recorded, path: recipe_changes(recorded, self.recipe, str(path)),
            after=self.push,
        )

    def _wrote_recipe(self) -> bool:
        path = self.path / "recipe.yaml"
        return path.is_file() and read_record_bytes(path).startswith(HEADER.encode())

    def _refuse_foreign(self) -> None:
        """UserError if the folder holds files of no run, or if it or the folder of the stores cannot be created."""
        for key, folder in (("run_dir", self.path), ("stores", stores_dir(self.recipe))):
            refuse_blocked(folder / "recipe.yaml", f"choose another with {key}=...")
        # List the files before looking for the recipe, which another process may be writing.
        names = [p.name for p in self.path.iterdir()] if self.path.is_dir() else []
        temporary = re.compile(r"\.(recipe\.yaml|shared)\..*\.tmp")  # of processes that are starting, or were killed
        foreign = [name for name in names if name not in (".lock", AT_WORK) and not temporary.fullmatch(name)]
        if foreign and not self._wrote_recipe():
            raise UserError(
                f"{self.path}: not empty and not a run folder (no recipe.yaml that a run wrote);"
                f" choose another with run_dir=..."
            )
        self._refuse_links("run_dir", self.path, WRITTEN, ("checkpoints/*", "checkpoints/*/*"))
        self._refuse_links("stores", stores_dir(self.recipe), STORES, ("vectors/*",))

    def _refuse_links(self, key: str, folder: Path, names: Sequence[str], patterns: Sequence[str]) -> None:
        """UserError if one of ``names`` in the folder of ``key``, a folder below them, or what is found by ``patterns``
        is a link out of it. A checkpoint's own folders are looked at when it is read, and it is written as a new one.
        """
        below = (top for name in names if name != "checkpoints" for top in os.walk(folder / name))
        for path in (
            *(folder / name for name in names),
            *(path for pattern in patterns for path in folder.glob(pattern)),
            *(Path(place, name) for place, folders, _ in below for name in folders),
        ):
            if leads_out(path, folder):
                raise UserError(
                    f"{path}: is a link out of {folder}, and a run would replace, or show to others, what is there; put"
                    f" the folder itself there (cp -rL), or set {key}=... to the folder that has it"
                )
