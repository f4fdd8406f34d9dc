"""Training: it learns, it repeats to the byte, and its checkpoint is refused on other weights."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors import safe_open
from safetensors.torch import save_file

from lsb.artifact import Stage, file_sha256
from lsb.ids import from_arrow, sample_id
from lsb.labelled import LABEL
from vlmae.checkpoint import CHECKPOINT, build_model, load_checkpoint, save_checkpoint
from vlmae.data.batches import CachedClips
from vlmae.data.labels import label_matrix, labels_fingerprint
from vlmae.data.loader import ClipLoader
from vlmae.data.order import BatchOrder, OrderConfig
from vlmae.data.prefix_cache import PrefixCache
from vlmae.data.token_source import CachedTokens, in_source
from vlmae.data.whitening import read_whitening
from vlmae.metrics import choose_threshold
from vlmae.module import VlmaeModule
from vlmae.objectives import MultiTaskBinary
from vlmae.optimizers import OptimizerConfig
from vlmae.prediction import predict
from vlmae.trainer import TrainConfig

TrainIn = Callable[..., Stage]
LabelTable = Callable[..., pa.Table]
TASKS = ["relevance", "unsafe"]


def losses(stage: Stage) -> list[float]:
    with open(stage.path / "history.csv", encoding="utf-8") as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def test_eight_clips_are_learnt_by_heart(
    tmp_path: Path, train_in: TrainIn, labels_of: LabelTable, cache: PrefixCache
) -> None:
    few = labels_of("first", limit=8)
    config = TrainConfig(0, 80, 8, "cpu", 1, 0.8, "both")
    stage = train_in(tmp_path, labelled=few, learning_rate=2e-2, config=config)
    history = losses(stage)
    assert len(history) == 80
    assert history[0] > 0.5
    assert history[-1] < 0.02
    checkpoint = load_checkpoint(stage.path / CHECKPOINT, cache.identities)
    table = in_source(few, CachedTokens(cache))
    rows = cache.rows_of(from_arrow(table["id"]))
    predicted = predict(checkpoint.model, cache, rows).probability > 0.5
    assert (predicted == (label_matrix(table, TASKS) == 1)).all()


def test_same_training_in_another_root_gives_the_same_bytes(
    tmp_path: Path, trained: Stage, train_in: TrainIn
) -> None:
    torch.manual_seed(99)
    np.random.seed(99)
    again = train_in(tmp_path)
    assert not again.reused
    assert again.path.name == trained.path.name
    ours, other = ((s.path / CHECKPOINT).read_bytes() for s in (trained, again))
    assert ours == other
    assert again.content == trained.content
    assert train_in(tmp_path).reused


def test_order_of_labels_has_no_influence(
    tmp_path: Path, trained: Stage, train_in: TrainIn, labels_of: LabelTable
) -> None:
    table = labels_of("first")
    turned = table.take(list(range(table.num_rows))[::-1])
    assert train_in(tmp_path, labelled=turned).content == trained.content


@pytest.mark.parametrize("change", ["seed", "inputs", "epochs", "labels", "weights"])
def test_what_matters_is_part_of_the_name(
    tmp_path: Path, trained: Stage, train_in: TrainIn, labels_of: LabelTable, change: str
) -> None:
    base = {"seed": 0, "epochs": 2, "batch_size": 8, "accelerator": "cpu", "threads": 1}
    base |= {"target_precision": 0.8, "inputs": "both"}
    weighted = {"_target_": "vlmae.objectives.MultiTaskBinary", "weights": {"unsafe": 2.0}}
    options: dict[str, dict[str, Any]] = {
        "seed": {"config": TrainConfig(**{**base, "seed": 1})},
        "inputs": {"config": TrainConfig(**{**base, "inputs": "shuffled_audio"})},
        "epochs": {"config": TrainConfig(**{**base, "epochs": 1})},
        "labels": {"labelled": labels_of("first", limit=20)},
        "weights": {"objective": weighted},
    }
    other = train_in(tmp_path, **options[change])
    assert other.path.name != trained.path.name
    assert file_sha256(other.path / CHECKPOINT) != file_sha256(trained.path / CHECKPOINT)


def test_clips_that_were_skipped_are_counted_and_left_out(
    trained: Stage, labels_of: LabelTable, cache: PrefixCache
) -> None:
    asked = labels_of("first")
    skipped = set(cache.quarantine()["key"].to_pylist()) & set(asked["key"].to_pylist())
    assert skipped
    assert trained.counts["labels skipped"] == len(skipped)
    assert trained.counts["labels"] == asked.num_rows - len(skipped)
    used = pq.read_table(trained.path / "training_set.parquet")
    assert set(used["key"].to_pylist()) == set(asked["key"].to_pylist()) - skipped
    ids = from_arrow(used["id"])
    assert (ids[:-1] < ids[1:]).all()


def test_validation_table_holds_predictions_and_gives_the_thresholds(
    trained: Stage, cache: PrefixCache
) -> None:
    table = pq.read_table(trained.path / "validation.parquet")
    checkpoint = load_checkpoint(trained.path / CHECKPOINT, cache.identities)
    predictions = predict(checkpoint.model, cache, cache.rows_of(from_arrow(table["id"])))
    for column, task in enumerate(TASKS):
        scores = table[f"probability_{task}"].to_numpy()
        np.testing.assert_allclose(scores, predictions.probability[:, column], atol=1e-6)
        truth = table[LABEL + task].to_numpy() == 1
        assert checkpoint.thresholds[task] == choose_threshold(scores, truth, 0.8)


def test_a_task_without_any_label_does_not_stop_the_others(
    tmp_path: Path, train_in: TrainIn, labels_of: LabelTable, cache: PrefixCache
) -> None:
    stage = train_in(
        tmp_path,
        labelled=labels_of("first", blank=["unsafe"]),
        validation=labels_of("gold", blank=["unsafe"]),
    )
    assert np.isfinite(losses(stage)).all()
    checkpoint = load_checkpoint(stage.path / CHECKPOINT, cache.identities)
    assert checkpoint.thresholds["unsafe"] == 0.5


def test_training_without_validation_labels(
    tmp_path: Path, train_in: TrainIn, labels_of: LabelTable, cache: PrefixCache
) -> None:
    stage = train_in(tmp_path, validation=labels_of("gold", limit=0))
    checkpoint = load_checkpoint(stage.path / CHECKPOINT, cache.identities)
    assert checkpoint.thresholds == dict.fromkeys(TASKS, 0.5)


def test_late_fusion_trains_without_heads_of_its_own(
    tmp_path: Path, train_in: TrainIn, model_config: dict[str, Any]
) -> None:
    late = {**model_config, "fusion": {"_target_": "vlmae.fusion.LateFusion", "width": 16}}
    stage = train_in(tmp_path, model=late, epochs=1)
    assert set(stage.counts) >= {"trainable: project", "trainable: vl_head"}
    assert "trainable: heads" not in stage.counts


def test_labels_of_another_data_set_are_refused(
    tmp_path: Path, train_in: TrainIn, labels_of: LabelTable
) -> None:
    table = labels_of("first", limit=3)
    ids = pa.array([sample_id(f"other-{n}") for n in range(3)], table["id"].type)
    foreign = table.set_column(0, "id", ids)
    with pytest.raises(ValueError, match=r"3 clips are neither in the cache"):
        train_in(tmp_path, labelled=foreign)
    assert not [path for path in tmp_path.glob("train-*") if path.suffix != ".partial"]


def test_unknown_accelerator_is_refused(tmp_path: Path, train_in: TrainIn) -> None:
    with pytest.raises(ValueError, match=r"trainer\.accelerator .*'tpu'"):
        train_in(tmp_path, config=TrainConfig(0, 1, 8, "tpu", 1, 0.8, "both"))


def test_whitening_of_another_width_is_refused(
    tmp_path: Path, train_in: TrainIn, model_config: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"model\.components"):
        train_in(tmp_path, model={**model_config, "components": 4})


def test_checkpoint_gives_back_the_model(
    tmp_path: Path, cache: PrefixCache, whitened: Stage, model_config: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    model = build_model(model_config, cache.towers)
    model.set_whitening(read_whitening(whitened))
    path = tmp_path / CHECKPOINT
    save_checkpoint(
        path,
        model,
        model_config=model_config,
        towers=cache.towers,
        frozen=cache.identities,
        training_set="abc",
        thresholds={"relevance": 0.25, "unsafe": 0.5},
    )
    loaded = load_checkpoint(path, cache.identities)
    assert not loaded.model.training
    assert (loaded.training_set, loaded.sha256) == ("abc", file_sha256(path))
    assert loaded.thresholds == {"relevance": 0.25, "unsafe": 0.5}
    assert loaded.model_config == model_config
    rows = np.arange(20)
    ours, other = predict(model, cache, rows), predict(loaded.model, cache, rows)
    for name in ("probability", "vl_probability", "audio_probability", "embedding"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(other, name))


def test_checkpoint_holds_no_frozen_weights(trained: Stage, cache: PrefixCache) -> None:
    with safe_open(trained.path / CHECKPOINT, framework="pt") as stream:
        parts = {name.split(".")[0] for name in stream.keys()}  # noqa: SIM118
    assert parts == {"project", "fusion", "vl_head", "audio_head", "heads"}
    assert (trained.path / CHECKPOINT).stat().st_size < 1_000_000
    checkpoint = load_checkpoint(trained.path / CHECKPOINT, cache.identities)
    training_set = pq.read_table(trained.path / "training_set.parquet")
    assert checkpoint.training_set == labels_fingerprint(training_set, TASKS)


@pytest.mark.parametrize("tower", ["vl", "audio"])
@pytest.mark.parametrize("field", ["sha256", "options", "absent"])
def test_other_frozen_weights_are_refused(
    trained: Stage, cache: PrefixCache, tower: str, field: str
) -> None:
    frozen = copy.deepcopy(cache.identities)
    if field == "sha256":
        frozen[tower]["sha256"] = "0" * 64
    elif field == "options":
        frozen[tower]["options"] = {**frozen[tower]["options"], "pool": 5}
    else:
        del frozen[tower]
    with pytest.raises(ValueError, match=f"trained on another {tower} tower.*train again"):
        load_checkpoint(trained.path / CHECKPOINT, frozen)


def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, trained: Stage, cache: PrefixCache
) -> None:
    path = tmp_path / CHECKPOINT
    whole = (trained.path / CHECKPOINT).read_bytes()
    for content in (b"", b"no tensors at all", whole[:-100], whole[:50]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is not a safetensors file.*train again"):
            load_checkpoint(path, cache.identities)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"format None version None.*train again"):
        load_checkpoint(path, cache.identities)
    path.write_bytes(whole.replace(b'version\\":3', b'version\\":7'))
    with pytest.raises(ValueError, match="version 7"):
        load_checkpoint(path, cache.identities)


def module_on(
    cache: PrefixCache, whitened: Stage, model_config: dict[str, Any]
) -> tuple[VlmaeModule, ClipLoader]:
    torch.manual_seed(0)
    model = build_model(model_config, cache.towers)
    model.set_whitening(read_whitening(whitened))
    optimizer = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, warmup=0.25, clip_norm=1.0)
    module = VlmaeModule(model, MultiTaskBinary(TASKS, {}), optimizer, total_steps=12)
    labels = np.arange(32, dtype=np.int8).reshape(16, 2) % 2
    clips = CachedClips(cache, np.arange(16), labels)
    return module, ClipLoader(clips, BatchOrder(16, world=1, config=OrderConfig(4)))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:Warning")
def test_schedule_warms_up_and_decays(
    cache: PrefixCache, whitened: Stage, model_config: dict[str, Any]
) -> None:
    module, loader = module_on(cache, whitened, model_config)
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[Rates()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, loader)
    assert len(rates) == 12
    # A quarter of twelve steps is three: 1/4, 2/4, 3/4, then the cosine from its top.
    np.testing.assert_allclose(rates[:4], [0.0025, 0.005, 0.0075, 0.01])
    cosine = 0.005 * (1 + np.cos(np.pi * np.arange(9) / 9))
    np.testing.assert_allclose(rates[3:], cosine)
    groups = module.trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    counted = sum(p.numel() for group in groups for p in group["params"])
    assert counted == sum(module.model.trainable_parameters().values())


def test_loss_is_that_of_all_three_heads(
    cache: PrefixCache, whitened: Stage, model_config: dict[str, Any]
) -> None:
    module, loader = module_on(cache, whitened, model_config)
    batch = next(iter(loader))
    logged: dict[str, torch.Tensor] = {}
    module.log = lambda name, value, **_: logged.update({name: value})  # type: ignore[method-assign]
    losses = module.training_step(batch, 0)
    output = module(batch.streams)
    fused, vl, audio = (
        module.objective(logits, batch.labels)
        for logits in (output.logits, output.vl_logits, output.audio_logits)
    )
    torch.testing.assert_close(losses["loss"], fused + vl + audio)
    torch.testing.assert_close(losses["fused"], fused.detach())
    torch.testing.assert_close(logged["loss"], fused.detach())
