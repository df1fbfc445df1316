"""A run: one recipe, one folder. Opens the pieces of the run folder, in the order in which data flows.

The folder holds ``recipe.yaml`` (resolved), ``texts/``, ``vectors/<teacher>/``, ``checkpoints/``, ``metrics.jsonl``,
``evaluation.json`` and ``export/``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from jasper_jax.assets.models import is_here, resolve_model
from jasper_jax.checkpoints.checkpoint import Checkpoints
from jasper_jax.checkpoints.mirror import Mirror
from jasper_jax.data.pairs import PairStore, build_pair_store
from jasper_jax.data.texts import TextStore, build_text_store
from jasper_jax.embedder import Embedder
from jasper_jax.encoders.model_folder import ModelFolder
from jasper_jax.encoders.published import describe
from jasper_jax.recipe.config import Recipe, Teacher
from jasper_jax.recipe.load import dump_recipe, parse_recipe, run_dir
from jasper_jax.recipe.stages import ResolvedStage, resolve_stages, uses_teachers
from jasper_jax.runtime import processes
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import differences, exclusive, refuse_blocked, write_atomic
from jasper_jax.teachers.embedding import embed_teacher
from jasper_jax.teachers.online import OnlineVectors
from jasper_jax.teachers.teacher import TeacherEncoder, load_teacher, teacher_dim, teacher_source, teacher_spec
from jasper_jax.teachers.torch_teacher import TorchEncoder
from jasper_jax.teachers.vectors import TeacherView, VectorSpec, VectorStore

if TYPE_CHECKING:
    from jasper_jax.vision.load import VisionFolder

HEADER = "# The resolved recipe of this run, written by jasper. Change the recipe it came from, not this file.\n"
MAY_CHANGE = (
    "run_dir",
    "mirror",
    "evaluation",
    "export",
    "training.save_every",
    "training.keep",
    "training.evaluate_every",
    "training.loggers",
    "training.workers",
    "training.profile_steps",
    "training.micro_batch",
    "mesh",
)
"""Keys that may differ between two commands on one run folder: the trained parameters do not depend on them (on the
last two only by the rounding of sums in another order)."""


NOTHING_YET = ("recipe.yaml", "timings.json", ".lock", ".texts.lock")
"""What a command leaves that was refused before it made anything: another recipe may take such a folder over."""


class Run:
    """The run of ``recipe`` in its folder."""

    def __init__(self, recipe: Recipe, *, progress: bool = True, describe: bool = False):
        """``describe``: take what is published about a model that is not here instead of fetching gigabytes; such a
        run can be checked and planned, not trained."""
        self.recipe = recipe
        self.describe = describe
        self.progress = progress
        self.folder = run_dir(recipe)
        self.stores = Path(recipe.stores) if recipe.stores else self.folder
        self.stages: list[ResolvedStage] = resolve_stages(recipe)
        self.mirror = Mirror(recipe.mirror, self.folder) if recipe.mirror else None

    # ------------------------------------------------------------------ the recipe of the folder

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
                held.enter_context(exclusive(self.folder, what))
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

    def _wrote_recipe(self) -> bool:
        path = self.folder / "recipe.yaml"
        return path.is_file() and path.read_bytes().startswith(HEADER.encode())

    def _refuse_foreign(self) -> None:
        for key, folder in (("run_dir", self.folder), ("stores", self.stores)):
            refuse_blocked(folder / "recipe.yaml", f"choose another with {key}=...")
        # Listed before the recipe is looked for: another process may be writing it.
        names = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
        foreign = [n for n in names if n != ".lock" and not (n.startswith(".recipe.yaml.") and n.endswith(".tmp"))]
        if foreign and not self._wrote_recipe():
            raise UserError(
                f"{self.folder}: not empty and not a run folder (no recipe.yaml that a run wrote);"
                f" choose another with run_dir=..."
            )

    def claim(self) -> None:
        """Write the resolved recipe into the folder, or check that the folder's recipe is this one.

        Raises:
          UserError: the folder belongs to a run with another recipe (the differing keys are named), or holds
            something that is not a run.
        """
        self._refuse_foreign()
        path = self.folder / "recipe.yaml"
        if self._wrote_recipe():
            try:
                changed = recipe_changes(_load_yaml(path), self.recipe, str(path))
            except UserError as error:
                raise UserError(f"{error}; jasper wrote this file: restore it, or set run_dir=...") from None
            if changed and any(p.name not in NOTHING_YET for p in self.folder.iterdir()):
                raise UserError(
                    f"{self.folder}: this run folder was made with another recipe; {'; '.join(changed[:3])}"
                    f"{' and more' if len(changed) > 3 else ''}; set run_dir=... or delete the folder"
                )
        try:
            write_atomic(path, HEADER + dump_recipe(self.recipe))
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written: {error.strerror}") from None

    # ------------------------------------------------------------------ stores

    @property
    def text_folder(self) -> Path:
        """Folder of the text store."""
        return self.stores / "texts"

    def texts(self) -> TextStore:
        """The text store, built if it is not there yet."""
        texts = self.recipe.texts
        assert texts is not None
        seed = self.recipe.seed if texts.seed is None else texts.seed

        def build() -> TextStore:
            return build_text_store(texts, self.text_folder, seed, progress=self.progress)

        if processes.count() > 1:
            processes.first_does(build)  # the others then find it whole
        return build()

    def refuse_large_batches(self, number: int, what: str, *, images: bool = False) -> None:
        """UserError when a batch of the stages on texts, or on ``images``, is larger than ``number``: said before
        vectors are embedded, not after."""
        for stage in self.stages:
            if stage.images == images and stage.batch_size > number:
                raise UserError(
                    f"stages[{stage.index}].batch_size: {stage.batch_size} exceeds the {number:,} {what};"
                    f" lower it or add {'pairs' if images else 'texts'}"
                )

    def pairs(self) -> PairStore:
        """The store of image-caption pairs, built if it is not there yet."""
        images = self.recipe.images
        assert images is not None
        seed = self.recipe.seed if images.seed is None else images.seed

        def build() -> PairStore:
            return build_pair_store(images, self.stores / "images", seed, progress=self.progress)

        if processes.count() > 1:
            processes.first_does(build)  # the others then find it whole
        return build()

    @property
    def sees(self) -> bool:
        """Whether a stage learns from images."""
        return any(stage.images for stage in self.stages)

    @property
    def needs_vectors(self) -> bool:
        """Whether any stage is taught by teacher vectors."""
        return uses_teachers(self.recipe)

    def teacher_folder(self, teacher: Teacher) -> Path:
        """Folder of the teacher's vector store."""
        return self.stores / "vectors" / teacher.name

    def teacher_source(self, teacher: Teacher) -> Path | None:
        """Folder of the teacher's model, fetched if need be; None where its vectors are imported."""
        return None if teacher.model is None else teacher_source(teacher, progress=self.progress)

    def teacher_facts(self, teacher: Teacher) -> Path | ModelFolder | None:
        """:meth:`teacher_source`, or what is published about a model that is not here (see ``describe``)."""
        described = self._described(teacher.model, teacher.revision, teacher.causal) if teacher.model else None
        return described or self.teacher_source(teacher)

    def _described(self, model: str, revision: str | None, causal: bool | None) -> ModelFolder | None:
        """What is published about a model, where that is asked for and the model is not here."""
        return describe(model, causal) if self.describe and not is_here(model, revision) else None

    def load_teacher(self, teacher: Teacher) -> Embedder:
        """The teacher's model, ready to encode."""
        return load_teacher(teacher, teacher_source(teacher, progress=self.progress))

    def teacher_encoder(self, teacher: Teacher) -> TeacherEncoder | TorchEncoder:
        """``(texts, kinds) -> vectors`` of the teacher, its model loaded when a text is first encoded."""
        if teacher.backend == "torch":
            return TorchEncoder(teacher, teacher_source(teacher, progress=self.progress))
        return TeacherEncoder(lambda: self.load_teacher(teacher))

    def teacher_spec(self, teacher: Teacher) -> VectorSpec:
        """What the teacher's vectors depend on."""
        return teacher_spec(teacher, self.teacher_source(teacher))

    def embed(
        self, teacher: Teacher, texts: TextStore, *, process_index: int = 0, process_count: int = 1
    ) -> VectorStore | None:
        """Fill the teacher's vector store, this process's share of it; None while others' shards are missing.

        Processes that have joined each other share the work by themselves, and all have the whole store then.
        """
        joined = processes.count() > 1
        fill = partial(
            embed_teacher,
            self.teacher_folder(teacher),
            texts,
            self.teacher_spec(teacher),
            self.teacher_encoder(teacher),
            process_index=processes.index() if joined else process_index,
            process_count=processes.count() if joined else process_count,
            progress=self.progress,
        )
        store = fill()
        if joined:
            processes.barrier(f"vectors of {teacher.name}")
            store = fill()
        return store

    def open_vectors(self, teacher: Teacher, texts: TextStore) -> VectorStore:
        """The teacher's complete vector store, checked against the texts and against the recipe's teacher."""
        return VectorStore.open(self.teacher_folder(teacher), texts, self.teacher_spec(teacher))

    def teachers(self, texts: TextStore) -> TeacherView | None:
        """All teachers as one (paper section 2.1), None where no stage needs them."""
        if not self.needs_vectors:
            return None
        return TeacherView(
            [
                OnlineVectors(t.name, self.load_teacher(t), texts)
                if t.mode == "online"
                else self.open_vectors(t, texts)
                for t in self.recipe.teachers
            ]
        )

    @cached_property
    def teacher_dim(self) -> int | None:
        """Dimension of the concatenated teachers, None without teachers."""
        if not self.recipe.teachers:
            return None
        return sum(self.dim_of(teacher) for teacher in self.recipe.teachers)

    def dim_of(self, teacher: Teacher) -> int:
        """Dimension of one teacher's vectors."""
        return teacher_dim(teacher, self.teacher_facts(teacher))

    # ------------------------------------------------------------------ student

    def student_source(self) -> Path:
        """Folder of the student's starting checkpoint, or of its tokenizer."""
        settings = self.recipe.student
        name = settings.model or settings.tokenizer
        assert name is not None
        return resolve_model(name, settings.revision, progress=self.progress)

    def student_facts(self) -> Path | ModelFolder:
        """:meth:`student_source`, or what is published about a model that is not here (see ``describe``)."""
        settings = self.recipe.student
        described = self._described(settings.model, settings.revision, settings.causal) if settings.model else None
        return described or self.student_source()

    def vision_source(self) -> VisionFolder | None:
        """The student's vision model, fetched if need be; None where it has none."""
        from jasper_jax.vision.load import read_vision

        settings = self.recipe.student.vision
        if settings is None:
            return None
        return read_vision(settings, resolve_model(settings.model, settings.revision, progress=self.progress))

    def vision_facts(self) -> VisionFolder | None:
        """:meth:`vision_source`, or what is published about a model that is not here (see ``describe``)."""
        from jasper_jax.vision.load import described_vision

        settings = self.recipe.student.vision
        if settings is None or not self.describe or is_here(settings.model, settings.revision):
            return self.vision_source()
        return described_vision(settings) or self.vision_source()


def cache_programs() -> None:
    """Keep compiled programs on disk between runs (``JASPER_CACHE``, else the user's cache folder)."""
    import jax

    from jasper_jax.assets.cache import cache_folder

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def environment() -> dict[str, Any]:
    """What a bit-for-bit repetition depends on besides the recipe."""
    import jax
    from jaxlib import version

    return {
        "jaxlib": version.__version__,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _load_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not valid YAML ({first})") from None


def recipe_changes(recorded: Any, recipe: Recipe, where: str) -> list[str]:
    """What differs between a recorded recipe (a plain tree found in ``where``) and this run's, ``MAY_CHANGE`` aside."""
    there = parse_recipe(recorded, where=where)
    found = differences(there.model_dump(mode="json"), recipe.model_dump(mode="json"), "")
    return [change for change in found if not _may_change(change.partition(" ")[0])]


def _may_change(key: str) -> bool:
    return any(key == allowed or key.startswith(allowed + ".") for allowed in MAY_CHANGE)


def checkpoints_of(run: Run) -> Checkpoints:
    """The run's checkpoints."""
    return Checkpoints(
        run.folder / "checkpoints",
        [s.name for s in run.stages],
        run.recipe.training.keep,
        other_recipe=lambda recorded, path: recipe_changes(recorded, run.recipe, str(path)),
        after=run.push,
    )
