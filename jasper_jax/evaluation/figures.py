"""matplotlib figures without a window system: made, and written as PNG."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def default_style() -> Iterator[None]:
    """Decorates what draws, so that no setting of a ``matplotlibrc`` counts: one in the current folder may ask for
    LaTeX, which reads files and runs programs.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UserError("plots need matplotlib: pip install 'jasper-jax[plot]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """A matplotlib figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> None:
    """Write ``figure`` as PNG, atomically; equal figures give equal bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    FigureCanvasAgg(figure)
    for text in figure.findobj(Text):  # names of somebody else: $ is no formula
        cast("Text", text).set_parse_math(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=dpi, metadata={"Software": None})
    write_atomic(Path(path), picture.getvalue())
