import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.objects import ConcurrencyLimitStrategy

from components.common.errors import ArtifactError, StageError
from components.requests.requests import load_requests
from flows import recheck
from flows.deployments import BURST, DEPLOYMENTS, deployments
from tests.toyregistry import GATES, POLICY, Shown, write_release

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)


def test_recheck_evaluates_the_release_and_not_the_tree(tmp_path, monkeypatch):
    """The scratch project holds the release's filter, adapters and requests, the seed and today's gates; another base or a failed stage is refused."""
    release = write_release(tmp_path / "release", Shown())
    (release.folder / "params.yaml").write_text(
        yaml.safe_dump(release.params | {"base": {"path": "assets/base"}, "judge": {"path": "judge", "clip": ""}})
    )
    ran = []

    def stream(command, cwd, _line, *, ended):
        assert ended() is False
        ran.append(command[-1])
        params = yaml.safe_load((cwd / "params.yaml").read_text())
        assert params["base"]["path"] == "assets/base"
        assert (cwd / "assets/base").resolve() == tmp_path / "assets/base"
        assert (params["evaluate"]["seed"], len(params["evaluate"]["gates"])) == (11, 1)
        assert (cwd / "models/filter/artifact.json").read_bytes() == (
            release.folder / "filter/artifact.json"
        ).read_bytes()
        assert (cwd / "models/guidance/r-1/artifact.json").is_file()
        assert list(load_requests(cwd / "requests.yaml")) == ["r-1"]
        if not (cwd / "reports/evaluate").exists():
            shutil.copytree(release.folder / "report", cwd / "reports/evaluate")
            shutil.copytree(release.folder / "report/attacks", cwd / "reports/attacks")
        return status[0]

    (tmp_path / "assets/base").mkdir(parents=True)
    status, policy = [0], POLICY._replace(gates=GATES[:1])
    monkeypatch.setattr(recheck, "stream", stream)
    again = recheck.evaluate_again(release, policy, 11, tmp_path, print)
    assert release.attacks is not None
    assert again.attacks == release.attacks[0]
    assert (again.metrics, ran) == (release.metrics["requests"], list(recheck.STAGES))
    status[0] = 3
    with pytest.raises(StageError, match="stage_corpus ended with exit status 3"):
        recheck.evaluate_again(release, policy, 11, tmp_path, print)
    status[0] = 0
    verdict = release.folder / "report" / "verdict.json"
    monkeypatch.setattr(
        recheck, "read_evaluation", lambda folder: ({"size": "full", "requests": {}}, {"judged": {"base": "other"}})
    )
    assert verdict.is_file()
    with pytest.raises(ArtifactError, match="the base is not the one of the release"):
        recheck.evaluate_again(release, policy, 11, tmp_path, print)


def test_deployments():
    """Every flow has a deployment of the package's version that never overlaps itself; drain starts by sweep and by event, after the window."""
    found = {deployment.flow_name: deployment for deployment in deployments(ROOT)}

    assert (
        set(found)
        == {"drain", "recheck", "retrain", "promote", "rollback"}
        == {one.flow.rpartition(".")[2] for one in DEPLOYMENTS}
    )
    for one in found.values():
        assert (one.concurrency_limit, one.concurrency_options.collision_strategy) == (
            1,
            ConcurrencyLimitStrategy.ENQUEUE,
        )
        assert one.parameters == {"root": str(ROOT)}
    drain = found["drain"]
    assert drain.schedules[0].schedule.cron == "*/15 * * * *"
    (trigger,) = drain.triggers
    assert trigger.expect == {"expunge.request.accepted"}
    assert (trigger.within, trigger.schedule_after) == (BURST, 24 * HOUR + BURST)
    assert found["recheck"].schedules[0].schedule.cron == "0 3 * * 1"
    assert not any(found[name].schedules or found[name].triggers for name in ("retrain", "promote", "rollback"))
    assert all(one.enforce_parameter_schema for one in found.values())
