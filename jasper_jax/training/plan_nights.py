"""``jasper plan``: how long a recipe's texts take to embed, and on how many hosts they are done in a night."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from rich.table import Table

from jasper_jax.planning.estimate import REACHED
from jasper_jax.training.plan_embedding import EmbeddingPlan


@dataclasses.dataclass(frozen=True)
class Night:
    """What is asked of a night.

    Attributes:
      hours: its length.
      text_tokens: the mean length of a text; None: each teacher's longest.
      price: of one host for one hour, in any currency; None: costs are not shown.
    """

    hours: float = 10.0
    text_tokens: int | None = None
    price: float | None = None

    def tokens(self, plan: EmbeddingPlan, texts: int) -> int:
        """Of so many texts, for the teacher of ``plan``."""
        return texts * (self.text_tokens or plan.longest)


def host_hours(plan: EmbeddingPlan, texts: int, night: Night) -> float | None:
    """Hours in which one host embeds ``texts``, at the likely rate of the teacher's largest program; None: it does not
    fit."""
    rate = plan.likely_tokens_per_second
    return None if rate is None else night.tokens(plan, texts) / rate / 3600


def nights_table(plans: Sequence[EmbeddingPlan], texts: int, night: Night) -> Table:
    """Per teacher and of all: tokens, hours of one host, hosts for a night, and the cost."""
    table = Table(
        "teacher",
        "G tokens",
        "hours of one host",
        f"hosts for {night.hours:g} h",
        *(["cost"] if night.price is not None else []),
        title=f"Embedding {texts:,} texts on hosts of {plans[0].target}",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    every = 0.0
    for plan in plans:
        hours = host_hours(plan, texts, night)
        table.add_row(plan.program.stage.name, f"{night.tokens(plan, texts) / 1e9:,.2f}", *_cells(hours, night))
        every = math.nan if hours is None else every + hours
    if len(plans) > 1 and not math.isnan(every):
        table.add_row("all", "", *_cells(every, night))
    lengths = f"{night.text_tokens:,} tokens each" if night.text_tokens else "each as long as its teacher allows"
    table.caption = (
        f"Texts of {lengths} (--text-tokens). A guess, not a measurement: kernels at {REACHED:.0%} of the published"
        " rates, every host busy all the time."
    )
    return table


def _cells(hours: float | None, night: Night) -> list[str]:
    if hours is None:
        return ["does not fit", "", *([""] if night.price is not None else [])]
    cost = [f"{hours * night.price:,.0f}"] if night.price is not None else []
    return [f"{hours:,.1f}", f"{math.ceil(hours / night.hours):,}", *cost]
