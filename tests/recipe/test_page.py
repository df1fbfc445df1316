"""docs/recipe.md is what the typed recipe says, and every key has a sentence."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "recipe_page.py"


def script():
    spec = importlib.util.spec_from_file_location("recipe_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_has_a_sentence() -> None:
    module = script()
    about = module.sentences()
    sections = module.sections()
    assert {"Recipe", "Losses", "Stage", "TextSource", "PairSource", "ImageSource"} <= {s.__name__ for s in sections}
    lacking = [f"{s.__name__}.{key}" for s in sections for key in s.model_fields if not about.get((s.__name__, key))]
    assert not lacking


def test_the_page_is_that_of_the_recipe() -> None:
    module = script()
    assert module.PAGE.read_text("utf-8") == module.page(), "run python scripts/recipe_page.py"
