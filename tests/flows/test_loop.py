import re
import subprocess
from contextlib import chdir

import pytest
import yaml
from prefect.testing.utilities import prefect_test_harness

from components.common.errors import StageError
from components.ledger.queue import read_queue
from components.registry.promotion import Registrar, read_policy
from components.registry.register import open_ledger
from components.registry.registry import Registry
from components.requests.requests import load_requests
from flows.drain import drain
from flows.promote import promote
from flows.recheck import recheck
from tests.test_pipeline import merged, small_project

GATES = [
    {"metric": "ua", "variant": "base", "direction": "at_most", "threshold": 1.0, "n": 1},
    {"metric": "ssim_unrelated", "variant": "gated", "direction": "at_least", "threshold": 0.3, "n": 2},
    {"metric": "passthrough_max_abs", "variant": "filter", "direction": "at_most", "threshold": 0.0, "n": 10},
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_a_submitted_request_to_a_rechecked_champion(tmp_path, monkeypatch, expunge):
    """Real stages, small: two submitted requests are drained into one candidate, which is promoted and evaluated again on fresh seeds."""
    for name in ("MLFLOW_TRACKING_URI", "EXPUNGE_LEDGER_URL", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    project = small_project(tmp_path / "project")
    params = yaml.safe_load((project / "params.yaml").read_text())
    changes = {
        "evaluate": {"gates": GATES}, "ledger": {"withdrawal_hours": 0}, "promote": {"size": "quick", "images": {"quick": 1}},
        "concepts": {"per_name": 6},  # an attack asks for four prompts that name the target
        "attack": {"sizes": {"quick": {"attacks": ["inflections", "special-tokens"], "attempts": 6, "tries": 6, "gates": [{"tier": "T0", "at_most": 1.0, "n": 1}]}}},
    }  # fmt: skip
    (project / "params.yaml").write_text(yaml.safe_dump(merged(params, changes), sort_keys=False))
    (project / "requests.yaml").write_text("requests: {}\n")
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "start"], cwd=project, check=True
    )
    wanted = [
        {"target": "cat", "kind": "object", "anchor": "dog", "channels": ["filter"]},
        {"target": "ghost", "kind": "character", "channels": ["filter"]},
    ]
    (project / "new.yaml").write_text(yaml.safe_dump(wanted))
    ids = expunge("request", "submit", "new.yaml", cwd=project).out.split()

    with prefect_test_harness(server_startup_timeout=180):
        done = drain(str(project))
        assert done["drained"] == ids == list(load_requests(project / "requests.yaml"))
        (version,) = Registry(project).versions()
        assert (version.version, version.verdict) == (1, done["verdict"]) == (1, "pass")
        assert {item.state for item in read_queue(open_ledger(project)).values()} == {"drained"}
        assert drain(str(project))["drained"] == []
        with chdir(project):
            Registrar(open_ledger(project), Registry(project), read_policy(project), "bob").approve(1)
        assert promote(1, version.digest, "carl", root=str(project))["champion"] == 1
        before = (project / "reports/evaluate/metrics.json").read_bytes()
        try:
            result = recheck(str(project), seed=20261128)["result"]
        except StageError as error:
            result = str(error)

    # of so few attempts perhaps none counts on other seeds: that is an alarm, as it should be
    assert re.fullmatch("PASSED|the champion, version 1, fails .* attacks on seed 20261128; .*", result)
    assert (project / "reports/evaluate/metrics.json").read_bytes() == before
