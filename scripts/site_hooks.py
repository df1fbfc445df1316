"""MkDocs hooks of the site: README.md as its first page, linked files of the repository as pages, equations as MathML.

Pages link to files as on a code host: ``../configs/quickstart.yaml`` from ``docs/``. On the site such a link goes to a
page with the file's text, made here. A link to a file that does not exist is left as it is, and MkDocs reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
SOURCE = "source/"
"""Where the site has the pages of files of the repository."""
FENCED = re.compile(r"^(```.*?^```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".sbatch": "bash", ".mjs": "js", ".toml": "toml"}


def on_config(config: MkDocsConfig) -> None:
    """Blocks of ``math`` become MathML while the site is built, which browsers draw without a script."""
    fence = {"name": "math", "class": "math", "format": mathml}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]


def mathml(source: str, *_: Any, **__: Any) -> str:
    """An equation in LaTeX as MathML."""
    return f'<div class="math">{convert(source.strip(), display="block")}</div>'


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add README.md as the first page, and a page for each file of the repository that a page links to."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text("utf-8")))
    linked = set()
    for file in files.documentation_pages():
        here = repository_path(file.src_uri)
        linked |= {resolve(here, target) for target in links(file.content_string)}
    for path in sorted(linked):
        if not path.startswith("docs/") and path != "README.md" and (ROOT / path).is_file():
            text = (ROOT / path).read_text("utf-8")
            fence = f"````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}````\n"
            files.append(File.generated(config, f"{SOURCE}{path}.md", content=f"# {path}\n\n{fence}"))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository at the pages of the site."""
    uri = page.file.src_uri
    if uri.startswith(SOURCE):
        return markdown

    def moved(match: re.Match[str]) -> str:
        target = site_uri(resolve(repository_path(uri), match[1]), files)
        return match[0] if target is None else posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in FENCED.split(markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Names in docstrings, ``:func:`name```, lose the role before them, which is Sphinx's and not Markdown's."""
    return re.sub(r":(?:class|func|meth|mod):(?=<code>)", "", html)


def links(markdown: str) -> list[str]:
    """The targets of relative links outside of code blocks, without their anchors."""
    return [target for part in FENCED.split(markdown) if not part.startswith("```") for target in LINK.findall(part)]


def repository_path(uri: str) -> str:
    """The file of the repository that the site's page ``uri`` is."""
    return "README.md" if uri == "index.md" else f"docs/{uri}"


def resolve(here: str, target: str) -> str:
    """The path in the repository of a link in the file ``here``."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), target))


def site_uri(path: str, files: Files) -> str | None:
    """The page or picture of the site that the repository's file ``path`` is; None if there is none."""
    uri = "index.md" if path == "README.md" else path.removeprefix("docs/") if path.startswith("docs/") else None
    uri = uri or f"{SOURCE}{path}.md"
    return uri if files.get_file_from_path(uri) else None
