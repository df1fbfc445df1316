"""Model cards of a tiny recipe, and what of a card would be live when it is rendered."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from markdown_it import MarkdownIt

from jasper_jax.evaluation.evaluation import Evaluation
from jasper_jax.export.card_training import History
from jasper_jax.export.model import TrainedStudent
from jasper_jax.export.model_card import model_card
from jasper_jax.run import Run
from jasper_jax.student.dimensions import providers
from jasper_jax.student.start import make_student
from tests.tiny import recipe

BREAKOUTS = [
    "`<img src=x onerror=alert(1)>`",
    "``` \n\n<script>alert(1)</script>\n```",
    "[click](javascript:alert(1)) ![x](https://evil.example/p.png)",
    "https://evil.example/x www.evil.example a@evil.example <https://evil.example>",
    "a | b `|` c |\n| --- |\n# Title\n- item",
    "\\`x\\` &lt;b&gt; *a* __b__ ~~c~~ [^1] $x$",
    "\x1b[31m\u202e s3://key:secret@bucket/x?token=t",
]


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown)


def refuse_live(html: str) -> None:
    """No tag, link or address outside of code."""
    rest = re.sub(r"<(code|pre)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(
        r"<(?!/?(h1|h2|h3|p|ul|li|table|thead|tbody|tr|t[hd]( style=\"text-align:\w+\")?|strong)>)", rest
    ), rest
    assert not re.search(r"https?:|www\.|javascript:|\w@\w+\.\w", rest), rest


def make_card(place: Path, scores: Evaluation | None = None, history: History | None = None, /, **changes: Any) -> str:
    """The card of the tiny recipe in ``place`` with ``changes``."""
    run = Run(recipe(place, **changes), progress=False)
    student = make_student(run.recipe, 24, run.student)
    served = providers(student.heads, {})
    trained = SimpleNamespace(
        student=student, served=served, default=max(served), settings=run.recipe.export, spaces=()
    )
    return model_card(run.recipe, cast("TrainedStudent", trained), scores, None, history)
