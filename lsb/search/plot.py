"""Hits against LT: how many hits, and seeds with any, a stricter LT would leave."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.files import write_bytes

STEPS = 101
LEFT_OF_LT = 0.08  # share of the axis where nothing was looked for

Counts = npt.NDArray[np.int64]


def hits_by_threshold(
    table: pa.Table, thresholds_T: npt.NDArray[np.float64]
) -> tuple[Counts, Counts]:
    """Hits, and seeds with a hit, at or above each threshold: (T,) and (T,).

    Args:
        table: with columns seed_id, similarity and rank, as a search gives them.
        thresholds_T: (T,) similarities.
    """
    similarity = table["similarity"].to_numpy().astype(np.float64)
    best = similarity[table["rank"].to_numpy() == 1]
    above = [np.sort(values) for values in (similarity, best)]
    hits, seeds = (len(v) - np.searchsorted(v, thresholds_T, side="left") for v in above)
    return hits.astype(np.int64), seeds.astype(np.int64)


def plot_hits(
    path: Path, table: pa.Table, *, seeds: int, lookalike_threshold: float | None
) -> None:
    """Draw both counts over LT as a PNG. Nothing is known, or drawn, below the LT of the search.

    Args:
        path: of the PNG.
        table: see `hits_by_threshold`, also with column saturated.
        seeds: how many were searched for.
        lookalike_threshold: of the search; None draws from the smallest similarity.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    similarity = table["similarity"].to_numpy()
    start = lookalike_threshold
    if start is None:
        start = float(similarity.min()) if len(similarity) else 0.0
    end = max(1.0, float(similarity.max(initial=-1.0)))
    start = min(start, end - 1e-3)
    thresholds = np.linspace(start, end, STEPS)
    hits, with_hit = hits_by_threshold(table, thresholds)
    saturated = len(table.filter(table["saturated"])["seed_id"].unique())

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 6), sharex=True)
    above.plot(thresholds, hits, color="tab:blue", lw=1.8)
    above.set_ylabel("hits")
    if hits.max(initial=0) > 100:
        above.set_yscale("symlog", linthresh=1)
    above.set_ylim(bottom=0)
    below.plot(thresholds, with_hit, color="tab:orange", lw=1.8)
    below.axhline(seeds, color="grey", lw=1, ls=":", label=f"all {seeds:,} seeds")
    below.set_ylabel("seeds with a hit")
    below.set_ylim(0, max(1, seeds) * 1.08)
    below.set_xlabel("LT, the smallest cosine similarity of a hit")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.set_xlim(start - LEFT_OF_LT * (end - start), end)
        if lookalike_threshold is not None:
            axis.axvline(start, color="tab:red", lw=1.5, label=f"LT = {lookalike_threshold:g}")
            axis.axvspan(axis.get_xlim()[0], start, color="grey", alpha=0.15, lw=0)
    handles = [h for axis in (above, below) for h in axis.get_legend_handles_labels()[0]]
    labels = [text for axis in (above, below) for text in axis.get_legend_handles_labels()[1]]
    once = dict(zip(labels, handles, strict=True))
    below.legend(once.values(), once.keys(), fontsize=8, loc="best")
    title = f"{len(similarity):,} hits of {seeds:,} seeds"
    if saturated:
        title += f"; {saturated:,} saturated: their further hits are not counted"
    above.set_title(title, fontsize=10)
    figure.tight_layout()
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    write_bytes(path, sink.getvalue())
