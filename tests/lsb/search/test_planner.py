"""The planner follows the costs it is given; no timing decides anything here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_costs import COSTS, KERNEL

from lsb.search.costs import Costs
from lsb.search.machines import Cluster, Job
from lsb.search.planner import Plan, plan

JOB = Job(1e8, 768, 10_000)
NODE = Cluster(nodes=1, cores=16, memory_gb=128)


def seconds(made: Plan) -> float:
    return made.chosen.total_seconds(made.job.searches)


def test_the_fastest_exact_way_is_chosen_and_all_are_listed() -> None:
    made = plan(JOB, NODE, COSTS)
    assert made.chosen.exact
    assert made.chosen.backend == "avx512"
    names = {way.name for way in made.ways}
    assert {"avx512", "avx512, stored codes", "int_mm", "knn", "IVF256", "IVF1024"} <= names
    exact = [way for way in made.ways if way.exact and not way.refused]
    assert seconds(made) == min(way.total_seconds(1) for way in exact)


def test_the_choice_follows_the_costs() -> None:
    slow = {
        "avx512": replace(KERNEL, pair=KERNEL.pair * 1e4, product=KERNEL.product * 1e4),
    }
    made = plan(JOB, NODE, replace(COSTS, kernels=slow))
    assert made.chosen.backend == "int_mm"
    assert plan(JOB, NODE, replace(COSTS, kernels={})).chosen.backend == "int_mm"
    slow_torch = replace(COSTS.torch, product=1e-8)
    without = plan(JOB, NODE, replace(COSTS, kernels={}, torch=slow_torch))
    assert without.chosen.backend == "knn"


def test_more_rows_and_seeds_cost_more_and_more_nodes_take_less_time() -> None:
    base = seconds(plan(JOB, NODE, COSTS))
    assert seconds(plan(replace(JOB, rows=1e9), NODE, COSTS)) > base
    assert seconds(plan(replace(JOB, seeds=100_000), NODE, COSTS)) > base
    assert seconds(plan(JOB, replace(NODE, nodes=4), COSTS)) < base
    assert seconds(plan(JOB, replace(NODE, cores=32), COSTS)) < base


def test_a_billion_rows_on_gpus_names_what_is_assumed() -> None:
    cluster = Cluster(4, 64, 8, "h100", 512, 10)
    made = plan(Job(1e9, 768, 100_000), cluster, COSTS)
    assert "int_mm on h100" in {way.name for way in made.ways}
    assumed = " ".join(told.text for told in made.assumptions if not told.measured)
    for word in ("H100 SXM", "1,979 int8 TOPS", "datasheet", "10 GB/s", "1,000,000 rows"):
        assert word in assumed
    assert any(told.measured for told in made.assumptions)
    assert made.reasons


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"no exact way fits: .* GB a process.*lower max-neigh"):
        plan(Job(1e9, 768, 10_000_000), replace(NODE, memory_gb=4), COSTS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, "rows is 0: give at least 1"),
        ({"lt": 2}, "lt is 2: give a cosine"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
    ],
)
def test_nonsense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(JOB, **values)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gpu is 'h300': known are h100"):
        Cluster(gpu="h300", gpus=1)


def test_costs_survive_their_file() -> None:
    assert Costs.from_json(COSTS.to_json()) == COSTS
