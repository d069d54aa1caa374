"""What the studies share: where they ran, how they state spread, one table and one file of results."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from components.common.files import canonical, write_text

RESULTS = Path(__file__).parent / "results"
DIGITS = 4
"""Significant digits of a table's numbers."""


def version_of(package: str) -> str | None:
    """The installed version of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(packages: Sequence[str], device: torch.device | None = None) -> dict[str, Any]:
    """Versions, hardware and date, as every file of results states them."""
    cuda = device is not None and device.type == "cuda"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in packages},
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        },
    }


def processor() -> str:
    """The processor's own name, where the system tells it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """n, median and quartiles."""
    low, middle, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75))
    return {"n": len(values), "median": float(middle), "q1": float(low), "q3": float(high)}


def spread(found: Mapping[str, float] | None) -> str:
    """`median [q1, q3]` for a cell of a table."""
    if found is None:
        return "—"
    return "{} [{}, {}]".format(*(f"{found[key]:.{DIGITS}g}" for key in ("median", "q1", "q3")))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of equal width."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def publish(name: str, record: Mapping[str, Any], text: str, folder: Path = RESULTS) -> Path:
    """Prints where and on what a study ran and its table, and writes the record to `folder/name.json`."""
    where = record["environment"]
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in where["versions"].items())
    hardware = ", ".join(f"{k} {v}" for k, v in where["hardware"].items())
    path = folder / f"{name}.json"
    write_text(path, canonical(record))
    tqdm.write(f"{where['date']}, Python {where['python']}, {versions}\n{hardware}\n\n{text}\n\n{path}")
    return path
