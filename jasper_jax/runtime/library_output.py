"""What libraries log and warn of, as it may be shown: the names in it are of files that may be somebody else's, such as
a tensor's with a sequence that writes the terminal's clipboard."""

from __future__ import annotations

import contextlib
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

from jasper_jax.runtime.shown import shown

_STYLE = re.compile(r"\x1b\[[\d;]*m")
"""Colours and bold type, which some libraries write themselves."""


@contextlib.contextmanager
def shown_logs() -> Iterator[None]:
    """Within it, records of loggers and warnings have no control characters and no secrets of addresses."""
    records, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def formatted(*arguments: Any, **options: Any) -> str:
        return shown(format_warning(*arguments, **options))

    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = formatted
    try:
        yield
    finally:
        logging.setLogRecordFactory(records)
        warnings.formatwarning = format_warning


class _Record(logging.LogRecord):
    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        if self.exc_info and self.exc_info[0] is not None:  # what a formatter takes, instead of formatting it
            self.exc_text = shown("".join(traceback.format_exception(*self.exc_info)).rstrip())

    def getMessage(self) -> str:
        return shown(_STYLE.sub("", super().getMessage()))
