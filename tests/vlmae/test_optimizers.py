"""Optimisers: groups and their rates, schedules, and towers that join later."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlmae.optimizers import OptimizerConfig, build_optimizer
from vlmae.tuning import TowerTuning

LAST = TowerTuning("last", 1, 0.1)


class Small(nn.Module):
    """Like `VlmaeModel` in the names that groups are made by."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.streams = {"vl": {"image": 3, "text": 3}, "audio": {"audio": 3}}
        self.suffix = nn.ModuleDict(
            {name: nn.Linear(3, 3) for names in self.streams.values() for name in names}
        )
        self.fusion = nn.Linear(9, 4)
        self.heads = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        behind = [part(x).tanh() for part in self.suffix.values()]
        return self.heads(self.fusion(torch.cat(behind, dim=-1)).tanh())


def config(**changes: Any) -> OptimizerConfig:
    values = {"learning_rate": 0.01, "weight_decay": 0.1, "warmup": 0.0, "clip_norm": 1.0}
    return OptimizerConfig(**{**values, **changes})


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]


def run(
    model: nn.Module, optimizer: Any, schedule: Any, steps: range, clip: float = math.inf
) -> list[list[float]]:
    """Some steps on batches of their own; the rates of each."""
    rates = []
    for step in steps:
        torch.manual_seed(100 + step)
        x = torch.randn(8, 3)
        loss = (model(x)[:, 0] - x.prod(dim=1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rates


def test_groups_are_named_and_each_has_its_rate_and_decay() -> None:
    model = Small()
    tuning = {"vl": TowerTuning("last", 1, 0.5), "audio": TowerTuning("lora", 1, 0.1)}
    objective = nn.ParameterDict({"log_variance": nn.Parameter(torch.zeros(2))})
    optimizer, _ = build_optimizer(model, config(), tuning, 10, extra=objective)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == [
        *("model", "model/no_decay", "vl", "vl/no_decay", "audio", "audio/no_decay", "objective")
    ]
    for name, group in groups.items():
        factor = {"vl": 0.5, "audio": 0.1}.get(name.split("/")[0], 1.0)
        assert group["initial_lr"] == pytest.approx(0.01 * factor)
        decayed = "/" not in name and name != "objective"
        assert group["weight_decay"] == (0.1 if decayed else 0.0)
    ours = {n: names_of(model, g["params"]) for n, g in groups.items() if n != "objective"}
    assert ours["model"] == ["fusion.weight", "heads.weight"]
    assert ours["vl"] == ["suffix.image.weight", "suffix.text.weight"]
    assert ours["audio/no_decay"] == ["suffix.audio.bias"]
    grouped = [name for names in ours.values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert groups["objective"]["params"] == list(objective.parameters())


def test_groups_without_parameters_are_left_out() -> None:
    model = Small()
    model.suffix.requires_grad_(False)
    model.heads.bias.requires_grad_(False)
    model.fusion.bias.requires_grad_(False)
    frozen = {"vl": TowerTuning(), "audio": TowerTuning()}
    optimizer, _ = build_optimizer(model, config(), frozen, 10, extra=nn.Identity())
    assert [group["name"] for group in optimizer.param_groups] == ["model"]
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing can be trained"):
        build_optimizer(model, config(), frozen, 10)


def test_a_parameter_without_dimension_is_refused_by_name() -> None:
    model = Small()
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"parameter 'scale' .* shape \(1,\)"):
        build_optimizer(model, config(), {}, 10)
    model.scale.requires_grad_(False)
    build_optimizer(model, config(), {}, 10)


def test_shapes_are_those_of_whole_tensors_under_zero_3() -> None:
    model = Small()
    for parameter in model.parameters():  # as deepspeed.zero.Init leaves them
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    optimizer, _ = build_optimizer(model, config(), {"vl": LAST, "audio": LAST}, 10)
    sizes = {group["name"]: len(group["params"]) for group in optimizer.param_groups}
    assert sizes["model"] == sizes["model/no_decay"] == 2
    assert sizes["vl"] == sizes["vl/no_decay"] == 2


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_one_rate_for_all_moves_weights_as_torch_does(name: str) -> None:
    ours, other = Small(), Small()
    settings = config(name=name, warmup=0.25, momentum=0.9 if name == "sgd" else 0.0)
    optimizer, schedule = build_optimizer(ours, settings, {}, 8)
    parameters = list(other.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    peer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups, lr=0.01)
        if name == "adamw"
        else torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    )

    def scale(step: int) -> float:
        return (step + 1) / 3 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 6))

    run(ours, optimizer, schedule, range(8))
    run(other, peer, torch.optim.lr_scheduler.LambdaLR(peer, scale), range(8))
    for (key, mine), theirs in zip(ours.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs), key


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_tower_that_waits_stays_bit_equal_and_disturbs_nothing(name: str) -> None:
    waiting, frozen = Small(), Small()
    frozen.suffix["audio"].requires_grad_(False)
    # SGD's decay is a part of the gradient, so it alone would be in the momentum.
    sgd = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0}
    settings = config(**(sgd if name == "sgd" else {}))
    late = {"vl": LAST, "audio": TowerTuning("last", 1, 0.1, unfreeze=0.5)}
    before = copy.deepcopy(waiting.suffix["audio"].state_dict())
    optimizer, schedule = build_optimizer(waiting, settings, late, 12)
    peer, peer_schedule = build_optimizer(frozen, settings, late, 12)
    # Clipping is active: gradients of what waits would change the norm.
    run(waiting, optimizer, schedule, range(6), clip=0.05)
    run(frozen, peer, peer_schedule, range(6), clip=0.05)
    for key, tensor in waiting.state_dict().items():
        # The norm that is clipped adds zeros up in another order: its last bit may differ.
        torch.testing.assert_close(tensor, frozen.state_dict()[key], rtol=0, atol=1e-7)
    assert not torch.equal(waiting.fusion.weight, Small().fusion.weight)
    for key, tensor in waiting.suffix["audio"].state_dict().items():
        assert torch.equal(tensor, before[key])
        state = optimizer.state[waiting.suffix["audio"].get_parameter(key)]
        collected = [value for slot, value in state.items() if slot != "step"]
        assert collected
        assert all(not value.any() for value in collected), "no momentum before it joins"
    run(waiting, optimizer, schedule, range(6, 7), clip=0.05)
    for key, tensor in waiting.suffix["audio"].state_dict().items():
        assert not torch.equal(tensor, before[key])


def test_a_late_tower_steps_as_a_new_adamw_does() -> None:
    """Its weights follow those of an optimiser that is made when it joins."""
    late, new = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    new.load_state_dict(late.state_dict())
    start = new.weight.detach().clone()
    holder = Small()
    holder.streams = {"vl": {}, "audio": {"audio": 4}}
    holder.suffix = nn.ModuleDict({"audio": late})
    tuning = {"audio": TowerTuning("last", 1, 1.0, unfreeze=0.8)}
    optimizer, schedule = build_optimizer(holder, config(weight_decay=0.0), tuning, 100)
    peer = torch.optim.AdamW(new.parameters(), lr=1.0, weight_decay=0.0)
    for step in range(100):
        torch.manual_seed(step)
        gradient = torch.randn(4, 4) + 0.3
        for stepped, layer in ((optimizer, late), (peer, new)):
            stepped.zero_grad()
            (layer.weight * gradient).sum().backward()
        optimizer.step()
        if step >= 80:
            peer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 100))
            peer.step()
        schedule.step()
    torch.testing.assert_close(late.weight, new.weight, rtol=0, atol=2e-7)
    assert (new.weight - start).abs().max() > 1e-3


def test_a_late_tower_warms_up_on_its_own_and_then_keeps_its_share() -> None:
    model = Small()
    tuning = {"vl": LAST, "audio": TowerTuning("last", 1, 0.1, unfreeze=0.4)}
    optimizer, schedule = build_optimizer(model, config(name="sgd", warmup=0.2), tuning, 20)
    names = [group["name"] for group in optimizer.param_groups]
    rates = run(model, optimizer, schedule, range(20))
    vl, audio = ([row[names.index(name)] for row in rates] for name in ("vl", "audio"))
    assert audio[:8] == [0.0] * 8
    for age in range(12):
        share = min(1.0, (age + 1) / 5)
        assert audio[8 + age] == pytest.approx(share * vl[8 + age], rel=1e-12)
    assert all(rate > 0 for rate in vl)


def test_a_resumed_training_unfreezes_at_the_same_step() -> None:
    tuning = {"vl": LAST, "audio": TowerTuning("last", 1, 0.1, unfreeze=0.5)}
    whole = Small()
    optimizer, schedule = build_optimizer(whole, config(), tuning, 12)
    run(whole, optimizer, schedule, range(4))
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    run(whole, optimizer, schedule, range(4, 10))
    resumed = Small()
    again, its_schedule = build_optimizer(resumed, config(), tuning, 12)
    for target, state in zip((resumed, again, its_schedule), saved, strict=True):
        target.load_state_dict(state)
    run(resumed, again, its_schedule, range(4, 10))
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert [g["name"] for g in again.param_groups] == [g["name"] for g in optimizer.param_groups]


def test_unfit_values_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer has name 'lion'.* adamw, sgd"):
        config(name="lion")
    with pytest.raises(ValueError, match=r"momentum 1\.0"):
        config(name="sgd", momentum=1.0)
    with pytest.raises(ValueError, match=r"learning_rate 0"):
        config(learning_rate=0.0)
    with pytest.warns(UserWarning, match=r"momentum 0\.9 has no effect on adamw"):
        config(momentum=0.9)
