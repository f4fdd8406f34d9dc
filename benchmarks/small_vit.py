"""A small pre-trained ViT, for fusion inside a transformer: `python -m benchmarks.small_vit`.

No wheel holds the weights of an image transformer, and `deep` needs one. This makes one without any
label: a ViT of four blocks learns to give, for single frames of the unlabelled clips of avt_small,
what EfficientNet-Lite0 gives (whitened by principal components). It knows no more than its teacher
and these pictures, and stands for nothing but a small transformer. Writes runs/models/small_vit, a
folder that `from_pretrained` reads, and prints how much of the teacher's variance it explains on
clips that it has not seen.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Shared, prepare_shared
from lsb import ids as sample_ids
from vlmae.config import compose_config
from vlmae.data.batches import LiveClips
from vlmae.data.encode import read_shard_index
from vlmae.data.whitening import read_whitening

TARGET = Path("runs/models/small_vit")
SIDE, PATCH, WIDTH, BLOCKS = 64, 8, 128, 4
EPOCHS, BATCH, RATE = 12, 64, 1e-3
SPLITS = ("first", "pool", "gold")  # never test


def frames_and_targets(shared: Shared, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """(N, 3, SIDE, SIDE) uint8 frames, (N, components) of the teacher, (N,) bool of split gold."""
    cache = shared.source.cache
    mean, mapping = read_whitening(shared.whitened)["image"]
    frames, targets, held_out = [], [], []
    for shard in [name for split in SPLITS for name in cache.shards_of(split)]:
        index = read_shard_index(shared.data.path, shard)
        rows = cache.rows_of(sample_ids.from_arrow(index["id"]))
        index, rows = index.take(np.flatnonzero(rows >= 0)), rows[rows >= 0]
        labels = np.full((len(rows), 1), -1, np.int8)
        reader = LiveClips(
            shared.data.path, index, labels, policy=settings.decode, sample_rate=16_000
        )
        clips = reader.batch(np.arange(len(rows))).clips
        tokens = cache.batch(rows, "image")
        for clip, values, mask in zip(clips, tokens.values, tokens.mask, strict=True):
            if len(clip.frames) and int(mask.sum()) == len(clip.frames):
                pictures = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
                small = torch.nn.functional.interpolate(
                    pictures.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True
                )
                frames.append(small.round().clamp(0, 255).to(torch.uint8))
                targets.append((values[mask].float() - mean) @ mapping)
                held_out.append(torch.full((len(pictures),), shard.startswith("gold")))
    return torch.cat(frames), torch.cat(targets), torch.cat(held_out)


def main() -> None:
    """Train and save."""
    console = Console(log_path=False)
    settings = Settings.from_config(
        compose_config("variants", ["experiment=fusion_avt_small", "name=small_vit"])
    )
    folder = RunFolder(settings.folder, settings.identity)
    shared = prepare_shared(settings, folder, console.log)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    frames, targets, held_out = frames_and_targets(shared, settings)
    console.log(f"{int((~held_out).sum())} frames to learn from, {int(held_out.sum())} to check")
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        image_size=SIDE,
        patch_size=PATCH,
    )
    model = ViTModel(config, add_pooling_layer=False)
    head = torch.nn.Linear(WIDTH, targets.shape[1])
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05)
    learn = torch.nonzero(~held_out)[:, 0]
    steps = EPOCHS * (len(learn) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)

    def predict(rows: Tensor) -> Tensor:
        pixels = frames[rows].float() / 127.5 - 1.0
        patches = model(pixel_values=pixels).last_hidden_state[:, 1:]
        result: Tensor = head(patches.mean(dim=1))
        return result

    started = time.perf_counter()
    for epoch in range(EPOCHS):
        total = 0.0
        for rows in torch.split(learn[torch.randperm(len(learn))], BATCH)[: len(learn) // BATCH]:
            loss = torch.nn.functional.mse_loss(predict(rows), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        seconds = time.perf_counter() - started
        console.log(f"epoch {epoch}: loss {total * BATCH / len(learn):.3f}, {seconds:.0f} s")
    model.eval()
    with torch.inference_mode():
        rows = torch.nonzero(held_out)[:, 0]
        error = torch.nn.functional.mse_loss(predict(rows), targets[rows])
    explained = 1 - float(error / targets[rows].var(dim=0, correction=0).mean())
    TARGET.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(TARGET)
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(TARGET)
    console.print(
        f"{TARGET}: {sum(p.numel() for p in model.parameters()):,} parameters, explains "
        f"{100 * explained:.0f} % of the teacher's variance on clips it has not seen"
    )


if __name__ == "__main__":
    main()
