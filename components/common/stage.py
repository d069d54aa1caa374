"""What every stage has in common: deterministic torch, a log, and one sentence instead of a traceback."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from components.common.errors import ExpungeError, StageError

log = logging.getLogger("expunge")
THREADS = 2
"""Torch threads of a stage: sums are split among threads, so a fixed number keeps the bytes the same."""


def run_stage(stage: Callable[..., None], *arguments: str) -> None:
    """Runs a stage as a program: exits with 0, or prints one sentence and exits with the error's code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "diffusers", "transformers", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if torch := sys.modules.get("torch"):  # a stage that computes has imported it
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(mode=True)
    try:
        stage(*arguments)
    except ExpungeError as error:
        log.error("%s", error)
        raise SystemExit(error.exit_code) from error
    except OSError as error:
        wrapped = StageError(f"{error.filename or 'a file'}: {error.strerror or error}", "free space or mend the path")
        log.error("%s", wrapped)
        raise SystemExit(wrapped.exit_code) from error
