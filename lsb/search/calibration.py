"""Costs of the steps of a search on this machine: measured in some seconds, then kept.

`$VLMAE_CACHE/costs-<machine>.json` keeps what `lsb.search.probes` measured until the processor, a
library or the kernel changes.
"""

from __future__ import annotations

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path

from lsb.search import _faiss
from lsb.search.costs import Costs
from lsb.search.kernel import library
from lsb.search.probes import (
    fit_costs,
    ivf_costs,
    kernel_costs,
    knn_costs,
    listing_costs,
    one_thread,
    reading_costs,
    torch_costs,
)

faiss = _faiss.load()

FORMAT, VERSION = "vlmae-costs", 2


def costs_here(*, recalibrate: bool = False) -> Costs:
    """Costs on this machine, measured unless they were before.

    Args:
        recalibrate: measure again.
    """
    path = costs_path()
    if not recalibrate:
        found = read_costs(path)
        if found is not None:
            return found
    costs = calibrate()
    told = {"format": FORMAT, "version": VERSION, "costs": costs.to_json()}
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    work.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    os.replace(work, path)
    return costs


def costs_path() -> Path:
    """Where the costs of this machine are kept."""
    digest = hashlib.blake2b(json.dumps(machine(), sort_keys=True).encode(), digest_size=8)
    return library.cache_folder() / f"costs-{digest.hexdigest()}.json"


def read_costs(path: Path) -> Costs | None:
    """Kept costs; None where there are none that this release reads."""
    try:
        told = json.loads(path.read_text("utf-8"))
        if (told["format"], told["version"]) != (FORMAT, VERSION):
            return None
        return Costs.from_json(told["costs"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def machine() -> dict[str, str]:
    """What costs depend on."""
    model = "unknown"
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    kernel = library.compiled()
    source = b"".join(path.read_bytes() for path in library.SOURCES)
    return {
        "cpu": model,
        "flags": hashlib.blake2b(
            " ".join(sorted(library.processor_flags())).encode(), digest_size=4
        ).hexdigest(),
        "kernel": "none" if kernel is None else kernel.name,
        "source": hashlib.blake2b(source, digest_size=4).hexdigest(),
        "openblas": os.environ.get("OPENBLAS_CORETYPE", "unset"),
        "numpy": metadata.version("numpy"),
        "torch": metadata.version("torch"),
        "faiss": faiss.__version__,
    }


def calibrate() -> Costs:
    """Measure all costs, in one thread."""
    with one_thread():
        kernels = {}
        for name, (needed, _) in library.INSTRUCTION_SETS.items():
            if library.processor_flags() >= set(needed) and library.compiled() is not None:
                kernels[name] = kernel_costs(library.load(name))
        at_once, square = fit_costs()
        read_byte, id_row = reading_costs()
        hit, merge = listing_costs()
        return Costs(
            kernels=kernels,
            torch=torch_costs(),
            knn=knn_costs(),
            ivf=ivf_costs(),
            read_byte=read_byte,
            id_row=id_row,
            hit=hit,
            merge=merge,
            fit=at_once,
            fit_square=square,
            machine=machine(),
        )
