"""Objectives against sums done by hand, and the property that every training rests on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vlmae.config import as_dict, compose_config
from vlmae.objectives import (
    MISSING,
    FixedWeights,
    GroupedSoftmax,
    MultiTaskBinary,
    MultiTaskFocal,
    Objective,
    UncertaintyWeights,
    build_objective,
)

TASKS = ["a", "b", "c", "d"]
TOPICS = {"topic": ["d", "b", "c"]}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "binary": lambda: MultiTaskBinary(TASKS, {"b": 3.0}, {"a": [0.5, 4.0], "c": 2.0}),
    "binary, uncertainty": lambda: MultiTaskBinary(TASKS, {}, weighting="uncertainty"),
    "focal": lambda: MultiTaskFocal(TASKS, {"d": 0.25}, gamma=1.5, alpha=0.7),
    "focal, uncertainty": lambda: MultiTaskFocal(TASKS, {}, weighting="uncertainty"),
    "softmax": lambda: GroupedSoftmax(TASKS, {"topic": 2.0}, TOPICS, {"c": 5.0, "a": [2.0, 1.0]}),
    "softmax, uncertainty": lambda: GroupedSoftmax(TASKS, {}, TOPICS, weighting="uncertainty"),
}


def bce(logit: float, label: int) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if label else 1 - probability)


def random_labels(rng: np.random.Generator, clips: int) -> Tensor:
    """Missing unevenly: a later clip misses more; b, c and d exclude each other."""
    labels = np.full((clips, 4), MISSING)
    labels[:, 0] = rng.integers(0, 2, clips)
    for row in range(clips):
        truth = np.eye(3, dtype=int)[rng.integers(3)]
        known = rng.random(3) < (0.9 if row < clips // 2 else 0.3)
        labels[row, 1:] = np.where(known, truth, MISSING)
    labels[rng.random(clips) < 0.5 * np.arange(clips) / clips, 0] = MISSING
    return torch.from_numpy(labels)


def gradients(
    objective: Objective, logits: Tensor, loss: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """The loss, its gradient by the logits, and by the objective's own parameters."""
    given = logits.clone().requires_grad_()
    objective.zero_grad()
    value = loss(given)
    value.backward()
    found = [value.detach(), given.grad, *(p.grad for p in objective.parameters())]
    return [part for part in found if part is not None]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_mean_over_any_micro_batches_is_that_of_the_batch(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    objective = OBJECTIVES[name]().double()
    for parameter in objective.parameters():
        parameter.data = torch.from_numpy(rng.normal(size=4 if "soft" not in name else 2))
    labels = random_labels(rng, 24)
    logits = torch.from_numpy(3 * rng.normal(size=(24, 4)))
    whole = gradients(objective, logits, lambda x: objective(x, labels))
    totals = objective.terms(labels).sum(dim=0)
    cuts = sorted(rng.choice(np.arange(1, 24), 4, replace=False).tolist())
    sizes = np.diff([0, *cuts, 24]).tolist()

    def split(given: Tensor) -> Tensor:
        parts = zip(given.split(sizes), labels.split(sizes), strict=True)
        return torch.stack([objective(x, y, totals, 5) for x, y in parts]).mean()

    for ours, expected in zip(gradients(objective, logits, split), whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    # Means of the micro-batches' own means are something else.
    parts = zip(logits.split(sizes), labels.split(sizes), strict=True)
    naive = torch.stack([objective(x, y) for x, y in parts]).mean()
    assert abs(float(naive.detach() - whole[0])) > 1e-5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_stands_at_a_missing_label_does_not_matter(name: str) -> None:
    objective = OBJECTIVES[name]()
    labels = torch.tensor([[1, MISSING, MISSING, MISSING], [MISSING, 1, 0, 0]])
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    _, by_logits, *_ = gradients(objective, logits, lambda x: objective(x, labels))
    assert (by_logits[0, 1:] == 0).all()
    assert by_logits[1, 0] == 0
    assert by_logits[0, 0] != 0
    assert by_logits[1, 1] != 0
    nothing = torch.full((2, 4), MISSING)
    loss, *grads = gradients(objective, logits, lambda x: objective(x, nothing))
    assert loss == 0
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_logits_and_half_precision_stay_finite(name: str) -> None:
    objective = OBJECTIVES[name]()
    logits = torch.tensor([[200.0, -200.0, 200.0, 0.0], [-200.0, 200.0, -200.0, 200.0]])
    labels = torch.tensor([[0, 1, 0, 0], [1, MISSING, 0, 0]])
    for part in gradients(objective, logits, lambda x: objective(x, labels)):
        assert torch.isfinite(part).all()
    rough = torch.randn(2, 4).bfloat16()
    loss = objective(rough, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, objective(rough.float(), labels))


def test_missing_labels_have_no_term_and_tasks_their_weights() -> None:
    objective = MultiTaskBinary(["a", "b"], {"b": 3.0})
    logits = torch.tensor([[0.5, -1.0], [2.0, 4.0], [-0.3, 0.1]])
    labels = torch.tensor([[1, 0], [-1, 1], [0, -1]])
    terms = bce(0.5, 1) + 3 * bce(-1.0, 0) + 3 * bce(4.0, 1) + bce(-0.3, 0)
    assert float(objective(logits, labels)) == pytest.approx(terms / 4, rel=1e-6)
    assert objective.probabilities(logits).equal(logits.sigmoid())


def test_class_weights_weigh_a_class() -> None:
    objective = MultiTaskBinary(["a", "b"], {}, {"a": [0.5, 4.0], "b": 3.0})
    logits = torch.tensor([[0.5, -1.0], [2.0, 4.0]])
    labels = torch.tensor([[1, 0], [0, 1]])
    terms = 4 * bce(0.5, 1) + bce(-1.0, 0) + 0.5 * bce(2.0, 0) + 3 * bce(4.0, 1)
    assert float(objective(logits, labels)) == pytest.approx(terms / 4, rel=1e-6)


def test_focal_loss_is_the_papers() -> None:
    logits = torch.tensor([[0.5], [2.0], [-1.0]])
    labels = torch.tensor([[1], [0], [0]])
    objective = MultiTaskFocal(["a"], {}, gamma=2.0, alpha=0.25)
    p = logits[:, 0].sigmoid().tolist()
    terms = (
        -0.25 * (1 - p[0]) ** 2 * math.log(p[0]),
        -0.75 * p[1] ** 2 * math.log(1 - p[1]),
        -0.75 * p[2] ** 2 * math.log(1 - p[2]),
    )
    assert float(objective(logits, labels)) == pytest.approx(sum(terms) / 3, rel=1e-5)
    plain, binary = MultiTaskFocal(["a"], {}, gamma=0.0), MultiTaskBinary(["a"], {})
    torch.testing.assert_close(plain(logits, labels), binary(logits, labels))


def test_softmax_of_whole_labels_is_cross_entropy() -> None:
    objective = GroupedSoftmax(["x", "y", "z"], {}, {"all": ["x", "y", "z"]}, {"y": 4.0})
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 3, generator=generator)
    classes = torch.tensor([0, 1, 2, 1, 0, 2])
    labels = functional.one_hot(classes, 3)
    expected = functional.cross_entropy(logits, classes, reduction="none")
    expected = (expected * torch.tensor([1.0, 4.0, 1.0])[classes]).mean()
    torch.testing.assert_close(objective(logits, labels), expected)
    # The positive alone says as much.
    torch.testing.assert_close(objective(logits, torch.where(labels == 1, 1, MISSING)), expected)
    torch.testing.assert_close(objective.probabilities(logits), logits.softmax(dim=1))


def test_partial_labels_of_a_group_leave_the_other_classes() -> None:
    objective = GroupedSoftmax(TASKS, {}, TOPICS)
    logits = torch.tensor([[0.3, 1.0, -0.5, 2.0]])
    p = logits[0, 1:].softmax(dim=0).tolist()  # of b, c, d
    for labels, held in (
        ([MISSING, 0, MISSING, MISSING], p[1] + p[2]),
        ([MISSING, 0, MISSING, 0], p[1]),
        ([MISSING, 0, 0, 1], p[2]),
    ):
        loss = float(objective(logits, torch.tensor([labels])))
        assert loss == pytest.approx(-math.log(held), rel=1e-5)
    assert objective.kinds == {"topic": (3, 1, 2), "a": (0,)}
    assert objective.terms(torch.tensor([[1, 0, -1, -1], [-1, -1, -1, -1]])).tolist() == [
        [1, 1],
        [0, 0],
    ]
    probabilities = objective.probabilities(logits)[0].tolist()
    assert probabilities == pytest.approx([1 / (1 + math.exp(-0.3)), *p])


def test_contradictory_labels_are_counted_and_refused() -> None:
    objective = GroupedSoftmax(TASKS, {}, TOPICS)
    whole = torch.tensor([[1, 1, 0, 0], [0, 0, 0, -1], [1, -1, -1, -1]])
    objective.check(whole)
    MultiTaskBinary(TASKS, {}).check(torch.ones(3, 4))
    wrong = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [-1, 1, -1, 1]])
    with pytest.raises(ValueError, match=r"'topic'.*2 clips.*more than one.*1 with none: correct"):
        objective.check(torch.cat([whole, wrong]))
    # In a loss they would be finite all the same.
    assert torch.isfinite(objective(torch.randn(3, 4), wrong))


def test_uncertainty_is_kendalls_and_settles_at_twice_the_loss() -> None:
    objective = MultiTaskBinary(["a", "b", "c"], {}, weighting="uncertainty").double()
    assert isinstance(objective.weighting, UncertaintyWeights)
    log_variance = objective.weighting.log_variance
    assert log_variance.shape == (3,)
    logits = torch.tensor([[0.5, -1.0, 9.0], [2.0, 4.0, 9.0], [-0.3, 0.1, 9.0]]).double()
    labels = torch.tensor([[1, 0, -1], [-1, 1, -1], [1, 1, -1]])
    means = [
        (bce(0.5, 1) + bce(-0.3, 1)) / 2,
        (bce(-1.0, 0) + bce(4.0, 1) + bce(0.1, 1)) / 3,
    ]
    log_variance.data = torch.tensor([0.4, -0.7, 0.9]).double()
    expected = math.exp(-0.4) * means[0] + 0.2 + math.exp(0.7) * means[1] - 0.35
    assert float(objective(logits, labels).detach()) == pytest.approx(expected, rel=1e-9)
    optimizer = torch.optim.SGD(objective.parameters(), 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        objective(logits, labels).backward()
        optimizer.step()
    settled = [math.log(2 * mean) for mean in means]
    # A task without labels has moved nowhere.
    assert log_variance.tolist() == pytest.approx([*settled, 0.9], rel=1e-5)


def test_auxiliary_heads_teach_the_weighting_nothing() -> None:
    objective = MultiTaskBinary(["a", "b"], {}, weighting="uncertainty")
    assert isinstance(objective.weighting, UncertaintyWeights)
    objective.weighting.log_variance.data = torch.tensor([0.4, -0.7])
    logits = torch.tensor([[0.5, -1.0]], requires_grad=True)
    loss = objective(logits, torch.tensor([[1, 0]]), auxiliary=True)
    expected = math.exp(-0.4) * bce(0.5, 1) + math.exp(0.7) * bce(-1.0, 0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert objective.weighting.log_variance.grad is None
    assert logits.grad is not None
    assert logits.grad.all()
    fixed = MultiTaskBinary(["a", "b"], {"a": 2.0})
    labels = torch.tensor([[1, 0]])
    assert fixed(logits, labels).equal(fixed(logits, labels, auxiliary=True))


@pytest.mark.parametrize(
    ("name", "kind", "weighting"),
    [
        ("binary", MultiTaskBinary, FixedWeights),
        ("focal", MultiTaskFocal, FixedWeights),
        ("softmax", GroupedSoftmax, FixedWeights),
        ("uncertainty", MultiTaskBinary, UncertaintyWeights),
    ],
)
def test_config_files_build_what_they_say(name: str, kind: type, weighting: type) -> None:
    more = ["+objective.groups.topic=[relevance,clickbait]"] if name == "softmax" else []
    values = as_dict(compose_config("train", [f"objective={name}", *more]))
    objective = build_objective(values["objective"], values["task"]["names"])
    assert type(objective) is kind
    assert type(objective.weighting) is weighting
    count = sum(parameter.numel() for parameter in objective.parameters())
    assert count == (3 if name == "uncertainty" else 0)


def node(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"vlmae.objectives.{name}", "weights": {}, **options}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (node("MultiTaskBinary", weights={"e": 2.0}), r"\['e'\].*the tasks are \['a', 'b', 'c'"),
        (node("MultiTaskBinary", weights={"a": -1.0}), r"weights\.a is -1\.0: give 0 or a"),
        (node("MultiTaskBinary", class_weights={"e": 2.0}), r"class_weights names \['e'\]"),
        (node("MultiTaskBinary", class_weights={"a": [1, 2, 3]}), r"class_weights\.a is \[1, 2, 3"),
        (node("MultiTaskBinary", weighting="gradnorm"), "'gradnorm': use one of fixed, uncert"),
        (
            node("MultiTaskBinary", weighting="uncertainty", weights={"a": 2.0}),
            "learns the weights: leave weights empty",
        ),
        (node("MultiTaskFocal", gamma=-1.0), r"gamma is -1\.0"),
        (node("MultiTaskFocal", alpha=1.0), r"alpha is 1\.0: give a share in \(0, 1\)"),
        (node("GroupedSoftmax", groups={}), "groups is empty: name groups.*objective=binary"),
        (node("GroupedSoftmax", groups={"g": ["a", "e"]}), r"groups\.g has \['e'\]"),
        (node("GroupedSoftmax", groups={"g": ["a"]}), r"groups\.g is \['a'\]: give two"),
        (node("GroupedSoftmax", groups={"c": ["a", "b"]}), "'c', the name of a task"),
        (node("GroupedSoftmax", groups={"g": ["a", "b"], "h": ["b", "c"]}), "'b' is in .*g and in"),
        (
            node("GroupedSoftmax", groups={"g": ["a", "b"]}, class_weights={"a": [1.0, 2.0]}),
            r"gives \['a'\] a weight of negatives",
        ),
        (node("GroupedSoftmax", groups={"g": ["a", "b"]}, weights={"a": 2.0}), "groups and loose"),
        (node("FixedWeights"), "cannot be built.*FixedWeights"),
        ({"_target_": "builtins.dict"}, "'builtins.dict', which is no objective"),
    ],
)
def test_wrong_options_are_refused_with_the_remedy(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build_objective(broken, TASKS)
