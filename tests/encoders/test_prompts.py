"""The two kinds of text are the same wherever one is named."""

from __future__ import annotations

from typing import get_args

from jasper_jax.encoders.prompts import KINDS
from jasper_jax.recipe.config import Prompts
from jasper_jax.recipe.config_sources import Kind


def test_recipes_know_the_kinds() -> None:
    assert get_args(Kind) == KINDS
    assert tuple(Prompts.model_fields) == KINDS
