"""How many texts and images a recipe has, needs vectors of, and sees in training."""

from __future__ import annotations

from jasper_jax.data.drawn import drawn_records
from jasper_jax.data.texts import TextStore
from jasper_jax.recipe.stages import Store
from jasper_jax.run import Run
from jasper_jax.teachers.needed import needed_draws

UNKNOWN = 1_000_000
"""Texts to reckon with where a recipe takes all of a store that is not built."""

FEW_TEXTS = 20_000
"""Below this, what a recipe for many texts does is worth a line."""


def advice_for_few_texts(run: Run) -> list[str]:
    """What a recipe for many texts does with few; nothing where their number is not known before the store is built."""
    texts, count = run.recipe.texts, text_count(run)
    if texts is None or not texts.sources or count is None or count > FEW_TEXTS:
        return []
    lines, augment = [], texts.augment
    if augment.split_share > 0.5:
        lines.append(
            f"texts.augment.split_share: {augment.split_share:.0%} of the passages of several sentences become pieces"
            f" of {augment.min_sentences} to {augment.max_sentences} sentences; set 0 to train on passages as they are."
        )
    repeats = seen(run, "texts") / max(1, count - texts.held_out)
    if repeats > 5:
        lines.append(
            f"Each of the {count - texts.held_out:,} texts is drawn {repeats:.0f} times; compare 'held out' at the"
            f" start and end of each stage, and lower steps or learning_rate where it rises."
        )
    return lines


def seen(run: Run, *stores: Store) -> int:
    """Texts or images of these stores that the stages encode; repeated ones count again."""
    return sum(stage.steps * stage.width for stage in run.stages if stage.kind.store in stores)


def text_count(run: Run) -> int | None:
    """Texts for training and held out; None if the recipe takes all texts of a store that is not built."""
    texts = run.recipe.texts
    if texts is not None and (run.data.text_folder / "manifest.json").is_file():
        store = TextStore.open(run.data.text_folder)
        return store.size("train") + store.size("held_out")
    return None if texts is None or texts.count is None else texts.count + texts.held_out


def needed_count(run: Run) -> int | None:
    """Texts whose teachers' vectors are needed; None if the recipe takes all texts."""
    texts = run.recipe.texts
    if texts is None or texts.count is None:
        return None
    draws = needed_draws(run.recipe, texts.count)
    drawn = texts.count if draws is None else int(drawn_records(draws, texts.count).sum())
    return drawn + texts.held_out
