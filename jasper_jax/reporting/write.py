"""Write the page of a run, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jasper_jax.reporting.comparison import comparison_page
from jasper_jax.reporting.page import refuse_without_packages, render
from jasper_jax.reporting.run_files import read_run
from jasper_jax.reporting.run_report import run_page
from jasper_jax.runtime.files import write_atomic

REPORT = "report.html"
"""File of a run folder."""


def write_report(folder: Path, output: Path) -> None:
    """Write the report of the run in ``folder``, atomically; equal runs give equal bytes.

    Raises:
      UserError: the extra ``report`` is not installed, or ``folder`` is no run folder.
    """
    refuse_without_packages()
    write_atomic(output, render(run_page(read_run(folder))))


def write_comparison(folders: Sequence[Path], output: Path) -> None:
    """Write one page of the runs in ``folders``; errors as of :func:`write_report`."""
    refuse_without_packages()
    write_atomic(output, render(comparison_page([read_run(folder) for folder in folders])))
