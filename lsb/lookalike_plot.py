"""Lookalike precision against similarity: the evidence that a lookalike threshold rests on."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import pyarrow as pa

from lsb.files import write_bytes
from lsb.threshold import LookalikeThreshold


def plot_precision(
    path: Path,
    curve: pa.Table,
    *,
    target: float,
    threshold: LookalikeThreshold | None,
    scaled: bool = False,
) -> None:
    """Draw precision, its lower bound, and the number of pairs over similarity as a PNG.

    Args:
        path: of the PNG.
        curve: schema `lsb.threshold.CURVE`; without a row the picture says so.
        target: wanted lower bound.
        threshold: that was chosen, or the fallback.
        scaled: whether similarities are scaled by density, see `lsb.local_scaling`.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(7, 6), sharex=True, height_ratios=(2, 1)
    )
    similarity = curve["similarity"].to_numpy()
    above.step(similarity, curve["precision"], where="pre", color="tab:blue", label="precision")
    above.step(
        similarity, curve["bound"], where="pre", color="tab:blue", ls="--", label="its lower bound"
    )
    above.axhline(target, color="grey", lw=1, ls=":", label=f"target {target:g}")
    above.set_ylim(0, 1.02)
    above.set_ylabel("lookalikes among labelled neighbours")
    below.step(similarity, curve["pairs"], where="pre", color="tab:orange")
    below.set_ylabel("labelled pairs")
    below.set_ylim(bottom=0)
    what = "scaled similarity" if scaled else "cosine similarity"
    below.set_xlabel(f"{what} to the seed, at least")
    if not len(similarity):
        above.text(0.5, 0.5, "too few labelled pairs", ha="center", transform=above.transAxes)
    if threshold is not None:
        for axis in (above, below):
            axis.axvline(
                threshold.value,
                color="tab:red",
                lw=1.5,
                label=f"LT = {threshold.value:.3f} ({threshold.mode})",
            )
    for axis in (above, below):
        axis.grid(alpha=0.3)
    above.legend(fontsize=8, loc="best")
    figure.tight_layout()
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    write_bytes(path, sink.getvalue())
