"""The page: sections of text, charts and tables, as one HTML file that needs nothing else.

Text from data is escaped by Jinja2 or, in JSON, against ``</script>``; the browser runs only the scripts whose sha256
the page names, and may fetch nothing (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jasper_jax.reporting.figures import Chart, finite
from jasper_jax.reporting.tables import Table
from jasper_jax.runtime.errors import UserError

PACKAGES = ("jinja2", "plotly", "sklearn")
"""What a page is made with, of the extra ``report``."""


@dataclass
class Section:
    """``missing``: the sentence that stands in the place of everything else. ``browser``: with the queries gained and
    lost; ``neighbours``: with the texts nearest to the one chosen on the map."""

    key: str
    title: str
    text: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: str = ""
    browser: bool = False
    neighbours: bool = False


@dataclass
class Card:
    """A number worth seeing first."""

    value: str
    label: str


@dataclass
class Page:
    """``data``: what the page's script reads besides the charts."""

    title: str
    lead: str
    cards: list[Card] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


def has_packages() -> bool:
    """Whether the extra ``report`` is installed."""
    return all(importlib.util.find_spec(package) is not None for package in PACKAGES)


def refuse_without_packages() -> None:
    """UserError if a package of the extra ``report`` is missing."""
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"a report needs {', '.join(missing)}: pip install 'jasper-jax[report]'")


def render(page: Page) -> str:
    """The page as HTML. Equal pages give equal text.

    Raises:
      UserError: the extra ``report`` is not installed.
    """
    refuse_without_packages()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jasper_jax.reporting", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    charts = {chart.key: [figure.tree() for figure in chart.figures] for s in page.sections for chart in s.charts}
    scripts = plotly_script(), _file("page.js")
    return environment.get_template("page.html.jinja").render(
        page=page,
        data=finite({"charts": charts, **page.data}),
        style=_file("page.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
    )


@cache
def plotly_script() -> str:
    """Plotly's own plotly.js, from its Python package."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    return (folder / "package_data" / "plotly.min.js").read_text("utf-8")


def _file(name: str) -> str:
    return (resources.files("jasper_jax.reporting") / "template" / name).read_text("utf-8")


def _hash(script: str) -> str:
    """As Content-Security-Policy names a script: a browser reads every line end as a newline."""
    text = script.replace("\r\n", "\n").replace("\r", "\n")
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
