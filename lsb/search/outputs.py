"""The files of a finished search: result.parquet, hits.png, summary.json."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lsb.files import write_json
from lsb.search.ask import Hits
from lsb.search.config import SearchConfig
from lsb.search.plot import plot_hits
from lsb.search.result import KeepConfig, Source, digest, result_table, write_result
from lsb.store import Store

RESULT_FILE = "result.parquet"
PLOT_FILE = "hits.png"
SUMMARY_FILE = "summary.json"
FILES = (RESULT_FILE, PLOT_FILE, SUMMARY_FILE)


def write_outputs(
    folder: Path,
    hits: Hits,
    store: Store,
    source: Source,
    keep: KeepConfig,
    config: SearchConfig,
    *,
    seeds: int,
    excluded: int,
) -> dict[str, Any]:
    """Write all three; their bytes do not depend on who searched, or when.

    Args:
        folder: made if absent.
        hits: of the search.
        store: that was searched.
        source: for the metadata.
        keep: which hits are kept.
        config: backend of the search for near duplicates.
        seeds: how many were searched for.
        excluded: ids that could not be found.

    Returns:
        What is in summary.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = result_table(hits, store, keep, config)
    summary = {
        "seeds": seeds,
        "hits": table.num_rows,
        "kept": int(table["kept"].to_numpy().sum()),
        "groups": len(table["group_id"].unique()),
        "asked_again": hits.asked_again,
        "saturated": hits.saturated,
        "excluded": excluded,
        "pool": len(store),
        "source": asdict(source),
        "keep": asdict(keep),
        "neighbours": config.neighbours,
        "digest": digest(table),
    }
    plot_hits(
        folder / PLOT_FILE, table, seeds=seeds, lookalike_threshold=source.lookalike_threshold
    )
    write_json(folder / SUMMARY_FILE, summary)
    write_result(folder / RESULT_FILE, table, source, keep)
    return summary
