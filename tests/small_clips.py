"""A folder of short real videos with sound, titles and labels, and commands that run on it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
from warm_python import family

RATE = 16_000
FRAMES = 6
OF_CLIPS = (
    "data=folder",
    "data.shard_clips=16",
    "data.reencode=false",
    "decode.frames=1",
    "decode.backend=pyav",
    "vl.image_size=64",
    "prefix.processes=1",
)
"""Keys of commands that read such a folder, beside those that name it."""


def write_clip(path: Path, number: int) -> None:
    """One second of a coloured, moving square and a tone, H.264 and AAC."""
    rng = np.random.default_rng(number)
    colour = rng.integers(40, 255, 3)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAMES)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for time_step in range(FRAMES):
            picture = np.zeros((64, 64, 3), np.uint8)
            left = 4 + 6 * time_step
            picture[left : left + 20, 10 + number % 30 : 40 + number % 20] = colour
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time_step, Fraction(1, FRAMES)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = 0.3 * np.sin(2 * np.pi * (200 + 20 * (number % 40)) * np.arange(RATE) / RATE)
        sound = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
        sound.sample_rate, sound.pts, sound.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))


def write_folder(folder: Path, clips: int) -> None:
    """`clips` videos with titles, and labels.csv and validation.csv beside the folder."""
    folder.mkdir(parents=True)
    for number in range(clips):
        write_clip(folder / f"clip-{number:04d}.mp4", number)
        (folder / f"clip-{number:04d}.txt").write_text(f"headline number {number}")
    for name, numbers in (("labels", range(0, clips - 8)), ("validation", range(clips - 8, clips))):
        with open(folder.parent / f"{name}.csv", "w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["key", "label_relevance", "label_unsafe"])
            rows.writerows([f"clip-{n:04d}", n % 2, int(n % 5 == 0)] for n in numbers)


def write_clips(folder: Path) -> tuple[str, ...]:
    """Write 24 clips and tables of labels; returns the keys that name them."""
    write_folder(folder / "clips", 24)
    tables = (f"{name}={folder / name}.csv" for name in ("labels", "validation"))
    return (f"data.path={folder / 'clips'}", *tables)


def arguments(root: Path, *more: str) -> list[str]:
    """Overrides that the commands here share."""
    return [*OF_CLIPS, f"data.path={root / 'clips'}", *more]


def training(root: Path, runs: Path, *more: str) -> list[str]:
    """Overrides of a small training."""
    return arguments(
        root,
        f"runs={runs}",
        f"labels={root / 'labels.csv'}",
        f"validation={root / 'validation.csv'}",
        "task.names=[relevance,unsafe]",
        "model.components=8",
        "fusion.width=16",
        "fusion.heads=2",
        "trainer.batch_size=4",
        *more,
    )


def start(module: str, overrides: list[str], ranks: int = 1) -> subprocess.Popen[str]:
    """A command, on one or several ranks."""
    launcher = [sys.executable, "-m"]
    if ranks > 1:
        launcher += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*launcher, module, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def run(module: str, overrides: list[str], ranks: int = 1) -> str:
    """Run a command to its end and return what it printed."""
    process = start(module, overrides, ranks)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_when(process: subprocess.Popen[str], file: Path, lines: int) -> None:
    """`kill -9` a command and all its processes as soon as a file has so many lines."""
    wait_for(process, file, lines)
    doomed = [*ranks_of(process), psutil.Process(process.pid)]
    for one in doomed:
        one.suspend()
    for one in doomed:
        one.kill()
    psutil.wait_procs(doomed, timeout=30)
    process.communicate()


def wait_for(process: subprocess.Popen[str], file: Path, lines: int) -> None:
    """Until a file has so many lines, while the command runs."""
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if file.is_file() and len(file.read_text().splitlines()) >= lines:
            break
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes that a command has started; torchrun's ranks have sessions of their own."""
    return family(process.pid)
