"""A pool and gold clips in which confident errors, unsure clips and easy ones are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lsb.acquisition.seeds import BroadeningConfig
from lsb.expand import AcquisitionConfig, ExpandConfig, Expansion
from lsb.ids import sample_ids
from lsb.labelled import Labelled
from lsb.search.exact import SearchConfig
from lsb.selection import SelectionConfig
from lsb.store import Store
from lsb.threshold import ThresholdConfig

Make = Callable[..., Store]
DIMENSION = 16


class World:
    """Clusters of clips; the model is confidently wrong on cluster 0 and unsure on cluster 1."""

    def __init__(self, pool: int = 300, gold: int = 120):
        random = np.random.default_rng(0)
        self.centres = np.linalg.qr(random.normal(size=(DIMENSION, DIMENSION)))[0][:6]

        def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
            cluster = np.arange(count) % 6
            x = self.centres[cluster] + 0.05 * random.normal(size=(count, DIMENSION))
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            return cluster, x.astype(np.float32)

        self.cluster, self.vectors = draw(pool)
        self.keys = [f"pool-{index}" for index in range(pool)]
        probability = np.select([self.cluster == 0, self.cluster == 1], [0.02, 0.5], 0.1)
        self.probability = probability + 1e-3 * random.random(pool)
        gold_cluster, gold_vectors = draw(gold)
        gold_keys = [f"gold-{index}" for index in range(gold)]
        self.labelled = Labelled(
            ids=sample_ids(gold_keys),
            keys=gold_keys,
            vectors=gold_vectors,
            labels={"policy": (gold_cluster < 2).astype(np.int8)},
            probabilities={
                "policy": np.select([gold_cluster == 0, gold_cluster == 1], [0.02, 0.9], 0.1)
            },
            operating_thresholds={"policy": 0.5},
        )

    def store(self, make_store: Make, **options: object) -> Store:
        columns = {"probability_policy": self.probability}
        return make_store(self.vectors, self.keys, columns, **options)

    def cluster_of(self, expansion: Expansion) -> list[int]:
        return [
            int(self.cluster[self.keys.index(k)]) for k in expansion.candidates["key"].to_pylist()
        ]


WORLD = World()
CONFIG = ExpandConfig(
    acquisition=AcquisitionConfig("entropy", {"policy": 1.0}),
    broadening=BroadeningConfig(entropy=5, confident_error=5, confidence=0.9),
    threshold=ThresholdConfig(mode="calibrated", target=0.7),
    search=SearchConfig(8, 100, 50),
    selection=SelectionConfig(budget=45, per_seed_cap=4),
)
