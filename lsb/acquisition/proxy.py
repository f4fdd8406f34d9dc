"""Selection via proxy: a small head on pooled embeddings scores everything in one cheap pass.

Source: Coleman et al. 2020 (arXiv 1906.11829) choose data for a large model by a small one. Ours is
an L2-regularised logistic regression on the frozen pooled vectors, one a task, fitted by scipy's
L-BFGS. Its probabilities go through the scores of `lsb.acquisition.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from lsb.acquisition.ranking import FloatArray, PoolBlock, PoolRanking, rank_pool
from lsb.acquisition.scores import multilabel
from lsb.acquisition.uncertainty import binary_entropy, normalised_weights
from lsb.ids import IdArray
from lsb.labelled import UNLABELLED
from lsb.search.rescore import rescore
from lsb.store import Store, VectorArray

MOST_ITERATIONS = 1000


@dataclass(frozen=True)
class Proxy:
    """A logistic head: sigmoid(weight . vector + bias).

    Attributes:
        weight: (D,) float32.
        bias: added to the product.
    """

    weight: npt.NDArray[np.float32]
    bias: float

    def probabilities(self, vectors_ND: VectorArray) -> FloatArray:
        """(N,) float64; the bits of each depend on its own vector alone.

        Args:
            vectors_ND: (N, D) float32 or float16.
        """
        row_N = np.arange(len(vectors_ND))
        product_N = rescore(self.weight[None], vectors_ND, np.zeros_like(row_N), row_N)
        return np.asarray(expit(product_N.astype(np.float64) + self.bias), dtype=np.float64)


def fit_proxy(
    ids: IdArray,
    vectors_MD: VectorArray,
    label_M: npt.NDArray[np.int8],
    *,
    penalty: float = 1.0,
) -> Proxy:
    """Fit a logistic head on labelled clips.

    The objective is the sum of log losses plus `penalty` / 2 times the squared norm of the weights;
    the bias is free. It is convex, so that nothing is drawn by chance.

    Args:
        ids: (M,) S16, unique: the fit does not depend on the order of the clips.
        vectors_MD: (M, D) float32 or float16 of norm 1, from the store that is scored.
        label_M: (M,) int8: 0, 1, or `UNLABELLED`, which is left out.
        penalty: > 0.

    Raises:
        ValueError: the penalty is not positive, one class has no clip, or the fit does not
            converge.
    """
    if not penalty > 0:
        raise ValueError(f"the penalty of a proxy is {penalty}: give a positive number")
    known = np.flatnonzero(label_M != UNLABELLED)
    known = known[np.argsort(ids[known], kind="stable")]
    positive = int((label_M[known] == 1).sum())
    if not 0 < positive < len(known):
        raise ValueError(
            f"{positive} of {len(known)} labelled clips are positive: a proxy needs both classes; "
            "label some more, or use another acquisition for this task"
        )
    vectors = np.asarray(vectors_MD[known], dtype=np.float64)
    sign = np.where(label_M[known] == 1, 1.0, -1.0)

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        weight, bias = parameters[:-1], parameters[-1]
        lead = sign * (vectors @ weight + bias)
        value = np.logaddexp(0.0, -lead).sum() + 0.5 * penalty * (weight @ weight)
        slope = -sign * expit(-lead)
        return float(value), np.append(vectors.T @ slope + penalty * weight, slope.sum())

    found = minimize(
        loss,
        np.zeros(vectors.shape[1] + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MOST_ITERATIONS, "gtol": 1e-6, "ftol": 1e-15},
    )
    if not found.success:
        raise ValueError(
            f"the proxy did not converge ({found.message}): raise the penalty, it is {penalty}"
        )
    return Proxy(found.x[:-1].astype(np.float32), float(found.x[-1]))


def rank_by_proxy(
    store: Store,
    proxies: Mapping[str, Proxy],
    task_weights: Mapping[str, float],
    count: int,
    *,
    exclude: IdArray,
    score: Callable[[FloatArray], FloatArray] = binary_entropy,
) -> PoolRanking:
    """Rank a pooled store by what proxies say of it, one block of vectors at a time.

    Args:
        store: of the kind the proxies were fitted on.
        proxies: task -> head.
        task_weights: task -> weight >= 0 of its score.
        count: clips wanted.
        exclude: ids to leave out (labelled clips).
        score: of binary probabilities, e.g. `lsb.acquisition.scores.top_score`.

    Raises:
        ValueError: a task with a weight has no proxy, or one of another dimension than the store.
    """
    shares = normalised_weights(task_weights)
    for task in shares:
        if task not in proxies:
            raise ValueError(
                f"task {task!r} has a weight but no proxy, only {sorted(proxies)} have: fit one or "
                "set the weight to 0"
            )
        if proxies[task].weight.shape != (store.dimension,):
            raise ValueError(
                f"the proxy of task {task!r} has {len(proxies[task].weight)} weights, store "
                f"{store.place} has dimension {store.dimension}: fit it on vectors of this store"
            )
    weight_T = np.asarray(list(shares.values()))

    def scored(block: PoolBlock) -> FloatArray:
        columns = [score(proxies[task].probabilities(block.vectors())) for task in shares]
        return multilabel(np.stack(columns, axis=1), weight_T)

    return rank_pool(store, [], scored, count, exclude)
