"""So that `python -m expunge` is `expunge`."""

from components.cli.main import main

main()
