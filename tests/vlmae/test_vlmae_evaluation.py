"""Evaluation and embedding of a trained checkpoint."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from lsb.artifact import Stage
from lsb.ids import from_arrow
from lsb.labelled import LABEL
from lsb.store import Store
from vlmae.calibration import Calibration
from vlmae.checkpoint import CHECKPOINT, Checkpoint, build_model, load_checkpoint, save_checkpoint
from vlmae.data.prefix_cache import PrefixCache
from vlmae.data.token_source import CachedTokens
from vlmae.data.whitening import read_whitening
from vlmae.embedding import EmbedConfig, embed_fused
from vlmae.evaluate import tabulate
from vlmae.evaluation import EvaluateConfig, evaluate, read_metrics
from vlmae.metrics import (
    average_precision,
    calibration_error,
    operating_point,
    recall_at_precision,
)
from vlmae.prediction import predict, predict_clips

LabelTable = Callable[..., pa.Table]
TASKS = ["relevance", "unsafe"]
CONFIG = EvaluateConfig(target_precision=0.8, resamples=40, seed=0, inputs="both", threads=1)
SOFTMAX = {
    "_target_": "vlmae.objectives.GroupedSoftmax",
    "weights": {},
    "groups": {"either": TASKS},
}


def saved_as(
    folder: Path,
    trained: Stage,
    cache: PrefixCache,
    objective: dict[str, Any],
    temperatures: dict[str, float],
) -> tuple[Stage, Checkpoint]:
    """The same model with another objective and temperatures, as a stage would hold it."""
    known = load_checkpoint(trained.path / CHECKPOINT, cache.identities)
    folder.mkdir()
    save_checkpoint(
        folder / CHECKPOINT,
        known.model,
        model_config=known.model_config,
        towers=cache.towers,
        frozen=known.frozen,
        training_set=known.training_set,
        thresholds=known.thresholds,
        objective=objective,
        temperatures=temperatures,
    )
    manifest = {**trained.manifest, "content": f"{objective['_target_']} {temperatures}"}
    stage = dataclasses.replace(trained, path=folder, manifest=manifest)
    return stage, load_checkpoint(folder / CHECKPOINT, cache.identities)


def test_metrics_are_those_of_the_predictions(
    stages: Path,
    cache: PrefixCache,
    source: CachedTokens,
    trained: Stage,
    labels_of: LabelTable,
) -> None:
    test = labels_of("test")
    stage = evaluate(stages, source, trained, test=test, config=CONFIG)
    metrics = read_metrics(stage)
    table = pq.read_table(stage.path / "predictions.parquet")
    thresholds = load_checkpoint(trained.path / CHECKPOINT, cache.identities).thresholds
    assert list(metrics) == TASKS
    assert stage.counts == {"clips": table.num_rows, "clips skipped": 0}
    for task in TASKS:
        scores = table[f"probability_{task}"].to_numpy().astype(np.float64)
        truth = table[LABEL + task].to_numpy() == 1
        found = metrics[task]
        assert found["clips"] == len(truth)
        assert found["positives"] == truth.sum()
        recall = found["recall_at_p80"]
        assert recall["value"] == recall_at_precision(scores, truth, 0.8)
        assert recall["low"] <= recall["high"]
        average = found["average_precision"]
        assert average["value"] == pytest.approx(average_precision(scores, truth))
        assert average["low"] < average["high"]
        point = dataclasses.asdict(operating_point(scores, truth, thresholds[task]))
        expected = {name: None if np.isnan(value) else value for name, value in point.items()}
        assert found["at_threshold"] == expected


def test_labels_of_the_table_meet_their_own_clips(
    stages: Path,
    cache: PrefixCache,
    source: CachedTokens,
    trained: Stage,
    labels_of: LabelTable,
) -> None:
    test = labels_of("test")
    truth = dict(zip(test["key"].to_pylist(), test[LABEL + "relevance"].to_pylist(), strict=True))
    turned = test.take(list(range(test.num_rows))[::-1])
    ours = evaluate(stages, source, trained, test=test, config=CONFIG)
    assert evaluate(stages, source, trained, test=turned, config=CONFIG).path == ours.path
    table = pq.read_table(ours.path / "predictions.parquet")
    assert (
        dict(zip(table["key"].to_pylist(), table[LABEL + "relevance"].to_pylist(), strict=True))
        == truth
    )
    rows = cache.rows_of(from_arrow(table["id"]))
    assert cache.rows.take(rows)["key"].to_pylist() == table["key"].to_pylist()


def test_temperatures_of_the_checkpoint_are_in_probabilities_and_calibration_error(
    tmp_path: Path,
    cache: PrefixCache,
    source: CachedTokens,
    trained: Stage,
    labels_of: LabelTable,
) -> None:
    test = labels_of("test")
    plain = load_checkpoint(trained.path / CHECKPOINT, cache.identities)
    raw, _ = predict_clips(plain.model, source, np.sort(from_arrow(test["id"])))
    temperatures = {"relevance": 0.05, "unsafe": 4.0}
    warm, _ = saved_as(tmp_path / "warm", trained, cache, plain.objective, temperatures)
    stage = evaluate(tmp_path, source, warm, test=test, config=CONFIG)
    metrics, table = read_metrics(stage), pq.read_table(stage.path / "predictions.parquet")
    for column, task in enumerate(TASKS):
        logits = torch.from_numpy(raw.logits[:, column])
        before = logits.sigmoid().numpy()
        after = (logits / temperatures[task]).sigmoid().numpy()
        scores = table[f"probability_{task}"].to_numpy()
        np.testing.assert_allclose(scores, after, rtol=1e-6)
        assert np.abs(after - before).max() > 0.01
        truth = table[LABEL + task].to_numpy() == 1
        found = metrics[task]
        assert found["temperature"] == temperatures[task]
        error = found["calibration_error"]
        assert error["before"] == pytest.approx(calibration_error(before, truth), rel=1e-5)
        assert error["after"] == pytest.approx(calibration_error(after, truth), rel=1e-5)
        assert error["before"] != error["after"]
        # The order of clips, and so the ranking metrics, are as before.
        assert found["average_precision"]["value"] == pytest.approx(
            average_precision(before.astype(np.float64), truth)
        )
        # The unimodal heads have no temperature of their own.
        values = table[f"vl_probability_{task}"].to_numpy()
        np.testing.assert_array_equal(values, raw.vl_probability[:, column])


def test_probabilities_of_a_store_are_those_of_the_objective(
    tmp_path: Path, cache: PrefixCache, source: CachedTokens, trained: Stage
) -> None:
    both = dict.fromkeys(TASKS, 2.0)
    grouped, checkpoint = saved_as(tmp_path / "softmax", trained, cache, SOFTMAX, both)
    stage = embed_fused(tmp_path, source, grouped, EmbedConfig("test"))
    assert stage is not None
    table = Store.open(stage.path).rows()
    columns = {
        prefix: np.stack([table[f"{prefix}_{task}"].to_numpy() for task in TASKS], axis=1)
        for prefix in ("logit", "probability", "vl_logit", "vl_probability")
    }
    for prefix, temperature in (("", 2.0), ("vl_", 1.0)):
        logits = torch.from_numpy(columns[f"{prefix}logit"])
        shares = (logits / temperature).softmax(dim=1).numpy()
        np.testing.assert_allclose(columns[f"{prefix}probability"], shares, rtol=1e-5)
    rows = cache.rows_of(from_arrow(table["id"]))
    ours = predict(checkpoint.model, cache, rows, calibration=Calibration.of(checkpoint))
    np.testing.assert_allclose(ours.probability, columns["probability"], atol=1e-6)
    none = predict(checkpoint.model, cache, rows[:0], calibration=Calibration.of(checkpoint))
    assert none.probability.shape == (0, 2)


def test_the_table_says_what_the_threshold_gives_and_fits_a_terminal(
    tmp_path: Path, source: CachedTokens, trained: Stage, labels_of: LabelTable
) -> None:
    test = labels_of("test", blank=["unsafe"])
    metrics = read_metrics(evaluate(tmp_path, source, trained, test=test, config=CONFIG))
    widest = {"value": 1.0, "low": 1.0, "high": 1.0}
    metrics["clickbait"] = {
        "clips": 12345,
        "positives": 6789,
        "recall_at_p80": widest,
        "average_precision": widest,
        "at_threshold": {"threshold": 0.5, "precision": 0.625, "recall": 1.0},
        "calibration_error": {"before": 0.2174, "after": 0.0431},
    }
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(tabulate(metrics, 0.8))
    lines = captured.get().splitlines()
    assert max(len(line) for line in lines) <= 80
    (header,) = (line for line in lines if "R@P80 95 %" in line)
    assert header.split()[-5:] == ["prec", "recall", "raw", "ECE", "ECE"]
    (row,) = (line for line in lines if "clickbait" in line)
    assert row.split()[3:] == ["100.0", "[100,100]"] * 2 + ["62.5", "100.0", "21.7", "4.3"]
    (row,) = (line for line in lines if "unsafe" in line)
    assert row.split() == ["unsafe", "0", "0", *["-"] * 6]
    (row,) = (line for line in lines if "relevance" in line)
    point = metrics["relevance"]["at_threshold"]
    assert row.split()[-3] == f"{100 * point['recall']:.1f}"


def test_skipped_clips_are_counted(
    tmp_path: Path,
    cache: PrefixCache,
    source: CachedTokens,
    trained: Stage,
    labels_of: LabelTable,
) -> None:
    pool = labels_of("pool")
    stage = evaluate(tmp_path, source, trained, test=pool, config=CONFIG)
    skipped = set(cache.quarantine()["key"].to_pylist()) & set(pool["key"].to_pylist())
    assert skipped
    assert stage.counts["clips skipped"] == len(skipped)


def test_a_task_without_test_labels_is_null_and_stops_nothing(
    tmp_path: Path,
    cache: PrefixCache,
    source: CachedTokens,
    trained: Stage,
    labels_of: LabelTable,
) -> None:
    test = labels_of("test", blank=["unsafe"])
    metrics = read_metrics(evaluate(tmp_path, source, trained, test=test, config=CONFIG))
    assert metrics["unsafe"]["clips"] == 0
    nothing = {"value": None, "low": None, "high": None}
    assert metrics["unsafe"]["average_precision"] == nothing
    assert metrics["unsafe"]["recall_at_p80"] == nothing
    assert metrics["unsafe"]["calibration_error"] == {"before": None, "after": None}
    assert metrics["relevance"]["average_precision"]["value"] is not None


def test_controls_are_measured_apart(
    tmp_path: Path,
    cache: PrefixCache,
    source: CachedTokens,
    trained: Stage,
    labels_of: LabelTable,
) -> None:
    tables = {}
    for inputs in ("both", "vl", "audio", "shuffled_audio"):
        config = dataclasses.replace(CONFIG, inputs=inputs)
        stage = evaluate(tmp_path, source, trained, test=labels_of("test"), config=config)
        tables[inputs] = pq.read_table(stage.path / "predictions.parquet")
    probabilities = {k: t["probability_relevance"].to_pylist() for k, t in tables.items()}
    assert len({tuple(values) for values in probabilities.values()}) == 4
    assert tables["vl"]["vl_probability_unsafe"] == tables["both"]["vl_probability_unsafe"]
    assert len(set(tables["vl"]["audio_probability_unsafe"].to_pylist())) == 1


def test_embedding_opens_as_a_store(
    stages: Path, cache: PrefixCache, source: CachedTokens, trained: Stage
) -> None:
    stage = embed_fused(stages, source, trained, EmbedConfig("pool"))
    assert stage is not None
    store = Store.open(stage.path)
    assert store.kind == "fused"
    assert store.dimension == 3 * 16
    assert list(stage.manifest["parts"]) == cache.shards_of("pool")
    rows = np.concatenate([cache.rows_of_shard(shard) for shard in cache.shards_of("pool")])
    assert len(store) == len(rows)
    assert (store.ids == cache.ids[rows]).all()
    model = load_checkpoint(trained.path / CHECKPOINT, cache.identities).model
    predictions = predict(model, cache, rows)
    vectors = store.vectors(cache.ids[rows])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    norms = np.linalg.norm(predictions.embedding, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, predictions.embedding / norms, atol=1e-5)
    table = store.rows()
    for prefix in ("probability", "vl_probability", "audio_probability"):
        values = np.stack([table[f"{prefix}_{task}"].to_numpy() for task in TASKS], axis=1)
        np.testing.assert_allclose(values, getattr(predictions, prefix), atol=1e-5)
    assert table["offset"].to_pylist() == cache.rows.take(rows)["offset"].to_pylist()


def test_predictions_do_not_depend_on_batches(cache: PrefixCache, trained: Stage) -> None:
    model = load_checkpoint(trained.path / CHECKPOINT, cache.identities).model
    rows = np.arange(23)
    whole, pieces = predict(model, cache, rows), predict(model, cache, rows, batch_size=5)
    np.testing.assert_allclose(whole.probability, pieces.probability, atol=1e-5)
    np.testing.assert_allclose(whole.embedding, pieces.embedding, atol=1e-5)
    assert predict(model, cache, rows[:0]).probability.shape == (0, 2)


def test_dropout_is_for_training_only(
    cache: PrefixCache, whitened: Stage, model_config: dict[str, Any]
) -> None:
    model = build_model({**model_config, "dropout": 0.9}, cache.towers).train()
    model.set_whitening(read_whitening(whitened))
    first, second = (predict(model, cache, np.arange(8)).probability for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_unknown_split_is_refused(tmp_path: Path, source: CachedTokens, trained: Stage) -> None:
    with pytest.raises(ValueError, match="no clip is in split 'train'"):
        embed_fused(tmp_path, source, trained, EmbedConfig("train"))
    assert not list(tmp_path.iterdir())
