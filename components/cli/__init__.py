"""The command line, `expunge`."""

from components.cli.main import app, main

__all__ = ["app", "main"]
