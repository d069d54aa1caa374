"""Reads the graph that dvc.yaml states: which stages there are, and an order to run them in."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
from dvc.repo import Repo


def stage_order(root: Path) -> list[str]:
    """Names of all stages of the root's dvc.yaml but frozen ones, each after what it depends on, otherwise in its order.

    The working directory does not matter. Stages of other dvc.yaml files, such as how the embedded base was trained, are
    no part of it.
    """
    with Repo(str(root)) as repo:
        index = repo.index
        listed = [stage for stage in index.stages if stage.path_in_repo == "dvc.yaml" and not stage.frozen]
        named = {
            stage: stage.addressing.rpartition(":")[2] for stage in listed
        }  # the rest is the way from where we are
        written = {name: i for i, name in enumerate(named.values())}
        graph = nx.relabel_nodes(index.graph.subgraph(listed).reverse(copy=True), named)
    return [str(name) for name in nx.lexicographical_topological_sort(graph, key=lambda name: written[name])]
