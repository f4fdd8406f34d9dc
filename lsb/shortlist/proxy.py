"""Selection via proxy as a shortlist: small heads on pooled vectors rank the pool in one pass.

Source: Coleman et al. 2020 (arXiv 1906.11829), see `lsb.acquisition.proxy`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.proxy import Proxy, fit_proxy, rank_by_proxy
from lsb.ids import IdArray
from lsb.shortlist.table import unbrought
from lsb.store import Store, VectorArray
from lsb.views import Views


def by_proxy(
    store: Store,
    labelled_ids: IdArray,
    vectors_MD: VectorArray,
    labels: Mapping[str, npt.NDArray[np.int8]],
    task_weights: Mapping[str, float],
    count: int,
    *,
    penalty: float,
    exclude: IdArray,
    views: Views | None = None,
) -> pa.Table:
    """The clips that heads fitted on labelled clips are least sure of.

    Args:
        store: pooled vectors of the pool.
        labelled_ids: (M,) S16, unique.
        vectors_MD: (M, D) of norm 1.
        labels: task -> (M,) int8: 0, 1, or -1 for none.
        task_weights: task -> weight >= 0 of its entropy. A task without labels of both classes is
            left out as long as another has them.
        count: clips wanted.
        penalty: of the heads.
        exclude: ids to leave out.
        views: whose streams are whitened before the heads are fitted; None leaves them as they are.

    Returns:
        Schema `lsb.shortlist.table.SHORTLIST` by (-entropy, id).

    Raises:
        ValueError: no weighted task has labels of both classes, or a fit does not converge.
    """
    proxies = {
        task: _fit(labelled_ids, vectors_MD, labels[task], penalty, views)
        for task, weight in task_weights.items()
        if weight > 0 and {0, 1} <= set(np.unique(labels[task]).tolist())
    }
    if not proxies:
        raise ValueError(
            f"none of the tasks {sorted(task_weights)} has labels of both classes: a proxy needs "
            "them; label more clips first, or use shortlist=all"
        )
    weights = {task: task_weights[task] for task in proxies}
    ranking = rank_by_proxy(store, proxies, weights, count, exclude=exclude)
    return unbrought(store, ranking.best.ids, "proxy")


def _fit(
    ids: IdArray,
    vectors_MD: VectorArray,
    labels_M: npt.NDArray[np.int8],
    penalty: float,
    views: Views | None,
) -> Proxy:
    """A head for clips as they are stored, wherever it was fitted."""
    if views is None:
        return fit_proxy(ids, vectors_MD, labels_M, penalty=penalty)
    whitened = views.whitened(vectors_MD).astype(np.float32)
    head = fit_proxy(ids, whitened, labels_M, penalty=penalty)
    weight, constant = views.unwhitened(head.weight.astype(np.float64))
    return Proxy(weight.astype(np.float32), head.bias + constant)
