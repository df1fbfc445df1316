"""The site: MkDocs builds it without a warning, with its links checked, and nothing in it comes from elsewhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import REPOSITORY, blocks

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_equations_are_mathml_and_tables_tables(site: Path) -> None:
    page = (site / "method" / "index.html").read_text("utf-8")
    equations = [block for block in blocks("math") if block.page.name == "method.md"]
    assert page.count("<math ") == len(equations) > 5
    assert "\\frac" not in page
    assert "<table>" in (site / "index.html").read_text("utf-8")


def test_files_of_the_repository_are_pages(site: Path) -> None:
    for page in ("index.html", "own-labels/index.html"):
        text = (site / page).read_text("utf-8")
        (link, *_) = re.findall(r'href="([^"]*source/configs/quickstart_pairs\.yaml/)"', text)
        listing = ((site / page).parent / link / "index.html").read_text("utf-8")
        assert "contrastive" in listing


def test_the_reference_has_signatures_and_sections(site: Path) -> None:
    page = (site / "reference" / "index.html").read_text("utf-8")
    for name in ("commands.distil.distil", "embedder.Embedder.encode", "losses.relative_loss", "losses.HeadLoss"):
        assert f'id="jasper_jax.{name}"' in page
    assert "Returns:" in page
    assert ":class:" not in page
    assert ":func:" not in page


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        fetched = re.findall(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="(\w+:[^"]*)"', text)
        assert [url for url in fetched if not url.startswith("data:")] == [], page
