"""Reads mutated files through the product's readers, and counts what they should not do.

A file is wrongly accepted if the list of mutations (mutate.py), written without the readers, says that it must be refused,
wrongly refused if it says the opposite, and read wrongly if other prompts come out than went in. Any exception but an
`ExpungeError` is a traceback, and more than two seconds are a hang.
"""

from __future__ import annotations

import io
import random
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from components.cli.params import read_params
from components.collect.sources import read_source
from components.common.errors import ExpungeError
from components.common.images import read_image
from components.requests.edit import add_request, remove_request
from components.requests.requests import load_requests
from research.reliability.cases import params_case, requests_case, table_case
from research.reliability.mutate import Case
from research.reliability.pictures import image_case, image_size
from research.reliability.show import largest, share
from research.show import Row

SECONDS, GIB = 2.0, 1.0
READERS: dict[str, tuple[Callable[[random.Random], Case], Callable[[Path], Any]]] = {
    "requests.yaml": (requests_case, load_requests),
    "params.yaml": (params_case, read_params),
    "prompts": (table_case, lambda path: read_source(str(path))),
    "images": (image_case, lambda path: image_size(read_image(path))),
}


class HangError(BaseException):
    """More than two seconds; no `except Exception` of a reader stops it."""


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(
    case: Case, read: Callable[[Path], Any], folder: Path, limit: float | None = None
) -> tuple[str, float, str]:
    """(accepted, refused, misread, traceback or hang; seconds; what was said) of one file."""
    path = case.put(folder)
    start = time.perf_counter()
    try:
        with _alarm(limit or SECONDS):
            found = read(path)
    except ExpungeError as error:
        said = str(error)
        one_sentence = bool(error.fact and error.remedy) and said.isprintable() and len(said) < 500
        return "refused" if one_sentence else "traceback", time.perf_counter() - start, said
    except HangError:
        return "hang", time.perf_counter() - start, ""
    except Exception as error:  # noqa: BLE001 - what is counted
        return "traceback", time.perf_counter() - start, f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    return "misread" if case.value is not None and found != case.value else "accepted", seconds, ""


def restored(path: Path) -> bool | None:
    """Whether to add and to withdraw a request leaves a requests.yaml as it was; None if it cannot be edited and is as it was."""
    before = path.read_bytes()
    try:
        added = add_request({"target": "zebra crossing", "kind": "object", "aliases": ["no"]}, path)
    except ExpungeError:
        return None if path.read_bytes() == before else False
    remove_request(added, path)
    return path.read_bytes() == before


def measure_large(command: str) -> list[Row]:
    """The rows of three tables near the limit of 100 MiB that are wrong in their last row alone."""
    prompts = [f"a painting of a küche at dusk with many waves, number {i:07} in a long series" for i in range(10**6)]
    lines = "\n".join(prompts)
    parquet = io.BytesIO()
    pq.write_table(pa.table({"prompt": [*prompts, "\0"]}), parquet)
    cases = (
        Case("large", "refuse", "large.csv", f"prompt\n{lines.replace(',', ' ')}\na,b\n".encode()),
        Case("large", "refuse", "large.jsonl", "".join([*(f'{{"prompt": "{p}"}}\n' for p in prompts), "{"]).encode()),
        Case("large", "refuse", "large.parquet", parquet.getvalue()),
    )
    with tempfile.TemporaryDirectory() as name:
        spent = []
        for case in cases:
            start = time.process_time()
            what, seconds, said = outcome(case, READERS["prompts"][1], Path(name), limit=60)
            spent.append(time.process_time() - start if what == "refused" else 1e9)
            tqdm.write(f"{case.name} ({len(case.content) >> 20} MiB): {what} in {seconds:.2f} s; {said}")
    what = "inputs: slowest refusal of a million prompts for the last one, CPU s"
    return [largest(what, max(spent), len(cases), SECONDS, command)]


def measure_inputs(n: int, seed: int, command: str) -> list[Row]:
    """The rows of `n` mutated files, as many of each kind."""
    counts: Counter[tuple[str, str]] = Counter()
    edited: Counter[bool | None] = Counter()
    refusals: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        for i in tqdm(range(n)):
            kind = list(READERS)[i % len(READERS)]
            make, read = READERS[kind]
            case = make(random.Random(f"{seed}/{i}"))
            folder = Path(name)
            found, seconds, said = outcome(case, read, folder)
            counts[case.must, found] += 1
            if found == "refused":
                refusals.append(seconds)
            wrong = found in ("traceback", "hang", "misread") or (case.must, found) in (
                ("refuse", "accepted"),
                ("accept", "refused"),
            )
            if wrong:
                tqdm.write(f"{i} {kind}, {case.what}, must {case.must}: {found} {said[:300]}")
            listed = isinstance(case.content, bytes) and b"requests" in case.content
            if kind == "requests.yaml" and listed and (case.must, found) == ("accept", "accepted"):
                edited[same := restored(folder / case.name)] += 1
                if same is False:
                    tqdm.write(f"{i} {case.what}: not restored")
            case.remove(folder)
    of = {must: sum(v for (m, _), v in counts.items() if m == must) for must in ("refuse", "accept", "either")}
    of_all = {found: sum(v for (_, f), v in counts.items() if f == found) for found in ("traceback", "hang", "misread")}
    return [
        share("inputs: wrongly accepted", counts["refuse", "accepted"] + counts["refuse", "misread"], of["refuse"], command),
        share("inputs: wrongly refused", counts["accept", "refused"], of["accept"], command),
        share("inputs: read wrongly", of_all["misread"], of["accept"], command),
        share("inputs: tracebacks", of_all["traceback"], n, command),
        share("inputs: hangs", of_all["hang"], n, command),
        share("inputs: bytes not restored by add, then remove", edited[False], edited[True] + edited[False], command),
        largest("inputs: slowest refusal, s", max(refusals, default=0.0), len(refusals), SECONDS, command),
        largest("inputs: peak memory of the process, GiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, n, GIB, command),
    ]  # fmt: skip
