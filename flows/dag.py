"""Reads the graph that dvc.yaml states: which stages there are, and an order to run them in."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
from dvc.repo import Repo


def stage_order(root: Path) -> list[str]:
    """Addresses of all stages but frozen ones, each after what it depends on, otherwise in the order of dvc.yaml."""
    with Repo(str(root)) as repo:
        index = repo.index
        written = {stage.addressing: i for i, stage in enumerate(index.stages)}
        frozen = {stage.addressing for stage in index.stages if stage.frozen}
        graph = nx.relabel_nodes(index.graph.reverse(copy=True), {s: s.addressing for s in index.stages})
    order = nx.lexicographical_topological_sort(graph, key=lambda name: written[name])
    return [name for name in order if name not in frozen]
