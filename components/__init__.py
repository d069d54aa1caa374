"""Expunge's slices, one folder each; docs/decisions and the README say how they hang together."""

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of image processors that nothing here uses
