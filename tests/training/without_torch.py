"""``jasper`` as on a machine without sentence-transformers, whose import takes seconds; run as a module."""

from __future__ import annotations

import sys

from jasper_jax.cli import main

if __name__ == "__main__":
    sys.modules |= {"sentence_transformers": None}  # found nowhere, and not imported
    main()
