"""The numbers of a run: summary.json, and the same as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from launch.rounds.growth import GrowthRound
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from vlmae.metrics import percentage


def summarise(
    settings: Settings,
    arms: Mapping[str, Sequence[GrowthRound]],
    controls: Mapping[str, Mapping[str, Any]],
    shared: Shared,
) -> dict[str, Any]:
    """What summary.json holds.

    Args:
        settings: of the main arm.
        arms: arm name -> its rounds; holds `settings.arm`.
        controls: control name -> task -> metrics, or empty.
        shared: the stages before the first round; their seconds stand in round 0.
    """
    rounds = {
        arm: [_round(entry, settings, shared.seconds) for entry in entries]
        for arm, entries in arms.items()
    }
    return {
        "experiment": settings.name,
        "data": {
            "name": settings.data.name,
            "media": settings.data.media,
            "unseen_speakers": list(settings.data.unseen_speakers),
            "clips": dict(sorted(shared.source.cache.stage.counts.items())),
        },
        "cache": _cache(settings, arms, shared),
        "seed": settings.train.seed,
        "evidence": "demonstration: one seed; intervals are over test clips, not over seeds",
        "target_precision": settings.evaluate.target_precision,
        "arm": settings.arm,
        "rounds": rounds[settings.arm],
        "arms": {arm: {"rounds": entries} for arm, entries in rounds.items()},
        "controls": {
            name: {task: _task(metrics[task]) for task in settings.tasks}
            for name, metrics in controls.items()
        },
    }


def _cache(
    settings: Settings, arms: Mapping[str, Sequence[GrowthRound]], shared: Shared
) -> dict[str, Any]:
    """What the frozen tokens cost once, and what every epoch would cost without them.

    A live epoch is estimated from the cache itself: the same decoding and encoding, by as many
    processes, of as many clips as there were labels in the last round.
    """
    cache, last = shared.source.cache, arms[settings.arm][-1]
    counts = cache.stage.counts
    clips = counts.get("clips", 0) + counts.get("skipped", 0)
    seconds = shared.seconds["cache"]
    live = seconds / max(1, clips) * last.labels
    cached = last.seconds["train"] / settings.train.epochs
    trainings = 1 + sum(len(rounds) - 1 for rounds in arms.values())  # the first is shared
    return {
        "clips": clips,
        "seconds": round(seconds, 1),
        "kilobytes_a_clip": round(cache.bytes_per_clip / 1e3, 1),
        "dtype": cache.codec.dtype,
        "labels": last.labels,
        "live_epoch_seconds": round(live, 2),
        "cached_epoch_seconds": round(cached, 2),
        "epochs_to_pay": round(seconds / (live - cached), 1) if live > cached else None,
        "epochs_trained": trainings * settings.train.epochs,
    }


def _round(
    entry: GrowthRound, settings: Settings, shared_seconds: Mapping[str, float]
) -> dict[str, Any]:
    seconds = {**(shared_seconds if entry.round == 0 else {}), **entry.seconds}
    return {
        "round": entry.round,
        "labels": entry.labels,
        "positives": sum(entry.positives.values()),
        "tasks": {
            task: {"positives": entry.positives[task], **_task(entry.metrics[task])}
            for task in settings.tasks
        },
        "expansion": entry.counts,
        "lookalike_threshold": entry.threshold,
        "task_thresholds": [asdict(one) for one in entry.task_thresholds],
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        **({} if entry.pseudo is None else {"pseudo_labels": entry.pseudo}),
    }


def _task(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Flat numbers with their intervals beside them."""
    flat: dict[str, Any] = {}
    for name in ("recall_at_p80", "average_precision"):
        flat[name] = metrics[name]["value"]
        flat[f"{name}_interval"] = [metrics[name]["low"], metrics[name]["high"]]
    flat |= metrics["at_threshold"]
    flat["test_clips"], flat["test_positives"] = metrics["clips"], metrics["positives"]
    return flat


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Tables of the main arm, its seconds, the arms, and the controls."""
    data = summary["data"]
    console.print(f"\n{data['name']}: {data['media']}. {summary['evidence'].capitalize()}.")
    console.print(_broken(data["clips"]))
    console.print(_rounds_table(summary))
    if any(entry["expansion"] for entry in summary["rounds"]):
        console.print(_growth_table(summary))
    if any(entry.get("task_thresholds") for entry in summary["rounds"]):
        console.print(_thresholds_table(summary))
    if any("pseudo_labels" in entry for entry in summary["rounds"]):
        console.print(_pseudo_table(summary))
    console.print(_seconds_table(summary))
    console.print(_cache_line(summary["cache"]))
    if len(summary["arms"]) > 1:
        console.print(_arms_table(summary))
    if summary["controls"]:
        console.print(_controls_table(summary))


def _broken(clips: Mapping[str, int]) -> str:
    """How many clips are used, and how many are skipped or masked for which reason."""
    reasons = [f"{name} {count}" for name, count in clips.items() if ": " in name]
    return f"{clips['clips']} clips used. " + (", ".join(reasons) or "None is broken") + "."


def _cache_line(cache: Mapping[str, Any]) -> str:
    """After how many epochs the cache has paid for itself."""
    line = (
        f"cache: {cache['clips']} clips, {cache['kilobytes_a_clip']} kB each ({cache['dtype']}), "
        f"{cache['seconds']} s. "
    )
    if cache["epochs_to_pay"] is None:
        return line + "An epoch without it would be no slower.\n"
    return (
        f"{line}An epoch of {cache['labels']} labels takes {cache['cached_epoch_seconds']} s with "
        f"it, about {cache['live_epoch_seconds']} s without: paid for after "
        f"{cache['epochs_to_pay']} epochs; {cache['epochs_trained']} were trained.\n"
    )


def number_table(title: str, *columns: str, words: Sequence[str] = ()) -> Table:
    """A table that fits 80 characters; columns named in `words` are text, the others numbers."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    return table


def _rounds_table(summary: Mapping[str, Any]) -> Table:
    percent = f"{100 * summary['target_precision']:.0f}"
    columns = (
        "round",
        "labels",
        "task",
        "found",
        "prec",
        "recall",
        f"R@P{percent} 95 %",
        "AP 95 %",
    )
    title = f"{summary['experiment']}, arm {summary['arm']}, in % of the test split"
    table = number_table(title, *columns, words=("task",))
    for entry in summary["rounds"]:
        for index, (task, metrics) in enumerate(entry["tasks"].items()):
            table.add_row(
                str(entry["round"]) if index == 0 else "",
                str(entry["labels"]) if index == 0 else "",
                task,
                str(metrics["positives"]),
                percentage(metrics["precision"]),
                percentage(metrics["recall"]),
                with_interval(metrics, "recall_at_p80"),
                with_interval(metrics, "average_precision"),
            )
        table.add_section()
    table.caption = (
        "found: positives among the labels; prec, recall: at the threshold chosen on gold labels"
    )
    return table


def _growth_table(summary: Mapping[str, Any]) -> Table:
    title = f"what arm {summary['arm']} asked for, and why"
    more = [
        kind
        for kind in ("random", "positive", "unsure")
        if any(entry["expansion"].get(f"seeds_{kind}") for entry in summary["rounds"])
    ]
    columns = (
        "round",
        "uncertain",
        "errors",
        *more,
        "LT",
        "bound",
        "hits",
        "seeds",
        "lookalikes",
        "others",
    )
    table = number_table(title, *columns)
    for entry in summary["rounds"]:
        counts, threshold = entry["expansion"], entry["lookalike_threshold"] or {}
        if not counts:
            continue
        value, bound = threshold.get("value"), threshold.get("precision")
        table.add_row(
            str(entry["round"]),
            str(counts["seeds_entropy"]),
            str(counts["seeds_confident_error"]),
            *(str(counts[f"seeds_{kind}"]) for kind in more),
            "-" if value is None else f"{value:.3f}",
            percentage(bound),
            str(counts["hits"]),
            str(counts["seed"]),
            str(counts["lookalike"]),
            str(counts["fill"] + counts["acquisition"]),
        )
    table.caption = (
        f"seeds searched ({', '.join(['uncertain', 'confident errors on gold', *more])}), "
        "threshold and its lower bound of lookalike precision; clips asked for as seeds, as "
        "lookalikes, by the acquisition order"
    )
    return table


def _thresholds_table(summary: Mapping[str, Any]) -> Table:
    columns = ("round", "task", "view", "LT", "bound", "pairs", "seeds")
    table = number_table("LT of each task", *columns, words=("task", "view"))
    for entry in summary["rounds"]:
        for index, one in enumerate(entry.get("task_thresholds", ())):
            table.add_row(
                str(entry["round"]) if index == 0 else "",
                one["task"],
                one["view"] or "-",
                one["mode"] if one["value"] is None else f"{one['value']:.3f}",
                percentage(one["precision"]),
                "-" if one["pairs"] is None else str(one["pairs"]),
                "-" if one["seeds"] is None else str(one["seeds"]),
            )
        table.add_section()
    table.caption = (
        "LT in standard deviations of the pool, its lower bound of lookalike precision in %, and "
        "the labelled pairs it rests on, of as many seeds; why LT is refused stands in summary.json"
    )
    return table


def _pseudo_table(summary: Mapping[str, Any]) -> Table:
    columns = ("round", "label", "clips", "gold", "right", "bound", "last rule now", "used")
    table = number_table("labels by the model itself", *columns, words=("label", "used"))
    for entry in summary["rounds"]:
        told = entry.get("pseudo_labels") or {"rules": []}
        for rule in told["rules"]:
            name = f"{rule['task']}={rule['label']}"
            earlier = f"{rule['earlier_right']} of {rule['earlier_gold']}"
            table.add_row(
                str(entry["round"]),
                name,
                str(told["labels"][name]),
                str(rule["gold"]),
                str(rule["right"]),
                percentage(rule["bound"]),
                "-" if rule["earlier_cut"] is None else earlier,
                "no" if rule["off"] else "yes",
            )
        table.add_section()
    table.caption = (
        "gold: clips that the rule takes, right: with that label, bound: of its precision in %; "
        "why a label is not used stands in summary.json"
    )
    return table


def _seconds_table(summary: Mapping[str, Any]) -> Table:
    stages = list(dict.fromkeys(name for entry in summary["rounds"] for name in entry["seconds"]))
    table = number_table("seconds per stage, when it was made", "round", *stages)
    for entry in summary["rounds"]:
        cells = [entry["seconds"].get(stage) for stage in stages]
        table.add_row(str(entry["round"]), *("" if s is None else f"{s:.1f}" for s in cells))
    return table


def _arms_table(summary: Mapping[str, Any]) -> Table:
    tasks = list(summary["rounds"][-1]["tasks"])
    title = "arms at equal labels, last round: R@P / AP in %"
    table = number_table(title, "arm", "labels", "found", *tasks, words=("arm",))
    for arm, entry in summary["arms"].items():
        last = entry["rounds"][-1]
        cells = (
            f"{percentage(last['tasks'][task]['recall_at_p80'])} / "
            f"{percentage(last['tasks'][task]['average_precision'])}"
            for task in tasks
        )
        table.add_row(arm, str(last["labels"]), str(last["positives"]), *cells)
    return table


def _controls_table(summary: Mapping[str, Any]) -> Table:
    tasks = list(summary["rounds"][-1]["tasks"])
    title = "what audio is worth, labels of the last round: AP in % with 95 %"
    table = number_table(title, "model", *tasks, words=("model",))
    for name, metrics in summary["controls"].items():
        cells = (with_interval(metrics[task], "average_precision") for task in tasks)
        table.add_row(name, *cells)
    return table


def with_interval(metrics: Mapping[str, Any], name: str) -> str:
    """Value and interval in percent, the interval without decimals."""
    low, high = metrics[f"{name}_interval"]
    if metrics[name] is None:
        return "-"
    return f"{percentage(metrics[name])} [{100 * low:.0f},{100 * high:.0f}]"
