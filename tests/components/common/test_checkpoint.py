import pytest
import torch
from torch import nn

from components.common.checkpoint import load_checkpoint, save_checkpoint


def train(model, optimizer, steps):
    for step in range(*steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


def fresh():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def test_checkpoint_resumed_run_equals_an_unbroken_one(tmp_path):
    """Ten steps in one go and five, a checkpoint, and five more give the same weights, bit by bit."""
    whole, optimizer = fresh()
    train(whole, optimizer, (0, 10))

    first, optimizer = fresh()
    train(first, optimizer, (0, 5))
    save_checkpoint(tmp_path / "c.safetensors", {"m": first}, optimizer, 5, {"idle": torch.tensor([7])})
    second, optimizer = fresh()
    step, extra = load_checkpoint(tmp_path / "c.safetensors", {"m": second}, optimizer)
    train(second, optimizer, (step, 10))

    assert step == 5
    assert extra["idle"].tolist() == [7]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_checkpoint_absent_changes_nothing(tmp_path):
    """Without a file training starts at step 0 with the weights that the model has."""
    model, optimizer = fresh()
    before = model.weight.clone()

    assert load_checkpoint(tmp_path / "none", {"m": model}, optimizer) == (0, {})
    assert torch.equal(before, model.weight)


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:10], lambda _: b"", lambda b: b[:-1] + b"\xff"])
def test_checkpoint_damaged_begins_anew(tmp_path, damage, caplog):
    """A checkpoint that was cut short or altered is not believed: training begins at step 0, and the log says why."""
    model, optimizer = fresh()
    train(model, optimizer, (0, 2))
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"m": model}, optimizer, 2)
    path.write_bytes(damage(path.read_bytes()))
    again, optimizer = fresh()
    before = again.weight.clone()

    assert load_checkpoint(path, {"m": again}, optimizer) == (0, {})
    assert torch.equal(before, again.weight)
    assert "was altered or cut short; training begins anew" in caplog.text
