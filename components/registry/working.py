"""Whether what a command reads in the working tree belongs together: as the registry asks of a release, before there is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from components.common.errors import ArtifactError
from components.common.files import SIDECAR, digest, read_sidecar
from components.common.paths import CONCEPTS, EVALUATE, GUIDANCE
from components.common.sections import PARAMS, read_section
from components.common.variants import Variant
from components.diffusion.folder import FORMAT
from components.diffusion.params import BaseParams
from components.evaluate.attacks.summary import ATTACKS
from components.evaluate.attacks.summary import RESULTS as ATTACK_RESULTS
from components.evaluate.attacks.summary import VERDICT as ATTACK_VERDICT
from components.evaluate.evidence import read_params_digest, requests_digest
from components.evaluate.summary import METRICS, VERDICT
from components.registry.lock import LOCK, check_written, dvc_md5, read_lock
from components.requests.requests import REQUESTS, load_requests

_ADAPTER = "expunge/adapter"
_CODE = (".py", ".yaml", "code.json")
_AGAIN = "evaluate them: expunge retrain"


def check_evidence(root: Path, judged: Mapping[str, str]) -> None:
    """`ArtifactError` unless evaluation and attacks in `root` are what their stages wrote, and of what lies there now.

    `judged` is what the evaluation's verdict names. Attacks that never ran are no evidence that could be wrong.
    """
    check_written(root, (EVALUATE / METRICS, EVALUATE / VERDICT))
    check_base(root)
    check_read(root, "evaluate")
    if judged.get("requests") != requests_digest(load_requests(root / REQUESTS)):
        raise ArtifactError(f"the last evaluation is of other requests than {REQUESTS} lists", _AGAIN)
    if judged.get("params") != read_params_digest(root / PARAMS):
        raise ArtifactError(f"the last evaluation had other parameters than {PARAMS} has", _AGAIN)
    if (root / ATTACKS / ATTACK_VERDICT).is_file():
        check_written(root, (ATTACKS / ATTACK_RESULTS, ATTACKS / ATTACK_VERDICT))


def check_read(root: Path, stage: str) -> None:
    """`ArtifactError` for something that `stage` read, code aside, and that is not what it was then, byte by byte, as dvc.lock says.

    What is not there cannot be taken for what was read: a fresh clone has no models yet.
    """
    for dep in read_lock(root / LOCK).get(stage, {}).get("deps", ()):
        path = root / dep["path"]
        if not path.name.endswith(_CODE) and path.exists() and dvc_md5(path) != dep.get("md5"):
            raise ArtifactError(
                f"{dep['path']} is not what stage {stage} read (dvc.lock)",
                "restore it with dvc checkout or git checkout, or run: expunge retrain",
            )


def check_note(base: Path) -> None:
    """`ArtifactError` for a base's sidecar, where it has one, that cannot be read."""
    if (base / SIDECAR).is_file():
        read_sidecar(base, FORMAT)


def check_base(root: Path) -> None:
    """`ArtifactError` for a base with a sidecar, such as the one that ships, in which a byte changed since stage `base` read it.

    Other bases can be large: the digests of their parts, which the artifacts name, are all that is looked at.
    """
    if (root / LOCK).is_file() and (root / read_section("base", BaseParams, root / PARAMS).path / SIDECAR).is_file():
        check_read(root, "base")


def check_own_adapters(root: Path, requests: Iterable[str] | None = None, variant: Variant | None = None) -> None:
    """`ArtifactError` for an adapter in `root` that was altered, or trained for another request or an earlier form of this one.

    It looks at those that `variant` takes of `requests`, or of all in requests.yaml; unknown requests are somebody else's to refuse.
    """
    if variant in ("base", "filter"):
        return
    wanted = None if requests is None else set(requests)
    for request_id, request in load_requests(root / REQUESTS).items():
        if "guidance" not in request.channels or (wanted is not None and request_id not in wanted):
            continue
        folder, remedy = (
            GUIDANCE / request_id,
            f"restore it with dvc checkout, or train it: expunge run guidance@{request_id}",
        )
        sidecar = read_sidecar(root / folder, _ADAPTER)
        record = root / CONCEPTS / request_id  # not where models alone were pulled
        if record.is_dir() and sidecar["inputs"].get("concepts") != digest(record):
            raise ArtifactError(
                f"{folder} was trained for another request than {CONCEPTS / request_id} describes", remedy
            )
        weights = folder / sidecar["weights"]["file"]
        if digest(root / weights) != sidecar["weights"]["sha256"]:
            raise ArtifactError(f"{weights} was altered or cut short", remedy)
