"""The check that nodes compute together, as the ranks of a training do."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

from launch.doctor.finding import Finding, one_line
from launch.doctor.within import within


def all_reduce(store: Any, rank: int, nodes: int, patience: float, gpus: int) -> Finding:
    """Sum over nodes: by gloo, and by NCCL where there are GPUs. Collective: all of them call it.

    Args:
        store: of torch.distributed, in which they have met.
        rank: of this node among them.
        nodes: how many.
        patience: seconds for each step.
        gpus: of this node.
    """
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    backend = "cpu:gloo,cuda:nccl" if gpus and torch.cuda.is_available() else "gloo"

    def connect() -> None:
        distributed.init_process_group(
            backend,
            store=PrefixStore("doctor", store),
            rank=rank,
            world_size=nodes,
            timeout=timedelta(seconds=patience),
        )

    def add(device: str) -> float:
        one = torch.ones(1, device=device)
        distributed.all_reduce(one)
        return float(one)

    try:
        within(2 * patience, connect)
        for device in ["cpu", "cuda"] if "nccl" in backend else ["cpu"]:
            total = within(2 * patience, partial(add, device))
            if total != nodes:
                raise RuntimeError(f"{nodes} ranks add up to {total}")
    except (RuntimeError, TimeoutError) as error:
        return Finding(
            "all-reduce",
            f"{backend} over {nodes} nodes: {one_line(error)[:300]}",
            "name the network that nodes share: 'launcher.setup=[\"export "
            'GLOO_SOCKET_IFNAME=<interface>","export NCCL_SOCKET_IFNAME=<interface>"]\'; more is '
            "told with NCCL_DEBUG=INFO",
        )
    distributed.destroy_process_group()
    return Finding("all-reduce", told=f"{backend.replace('cpu:', '')} over {nodes} nodes")
