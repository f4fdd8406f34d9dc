"""Costs of a machine that does not exist, for tests of the planner."""

from __future__ import annotations

from lsb.search.costs import Costs, IvfCosts, KernelCosts, KnnCosts, TorchCosts

KERNEL = KernelCosts(
    encode_row=5e-8,
    encode_coordinate=4e-10,
    half_coordinate=1e-10,
    prefix_coordinate=1e-9,
    encode_product=4e-12,
    pair=1e-12,
    product=3e-12,
    code_pair=1e-8,
    code_coordinate=2e-11,
    float_pair=2e-8,
    float_coordinate=1e-10,
    score_pair=1e-7,
    score_coordinate=2e-10,
    seed_coordinate=2e-8,
    kept_byte=5e-11,
)
COSTS = Costs(
    kernels={"avx512": KERNEL},
    torch=TorchCosts(2e-9, 4e-10, 3.5e-12, 5e-7, 3e-9, 3e-8),
    knn=KnnCosts(5e-10, 1e-10, 1.5e-11, 1e-7, 1e-7),
    ivf=IvfCosts(1e-11, 2e-11, 5e-11, 1e-9),
    read_byte=1e-10,
    id_row=1e-8,
    hit=1e-7,
    merge=1e-7,
    fit=0.05,
    fit_square=1e-7,
    machine={"cpu": "a test"},
)
