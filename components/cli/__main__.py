"""So that `python -m components.cli` is `expunge`."""

from components.cli.main import main

main()
