"""Decoding one clip: the same frames and all of its sound, by our seam and by others."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from benchmarks.data import media
from benchmarks.data.bench import BENCH_PACKAGES, Bench
from benchmarks.measure import Row, Table, costs
from benchmarks.report import package_version
from vlmae.data.decode import DecodePolicy, decode_sample, why_torchcodec_fails

NAME = "decode"
RATE = 16_000
PEER = "ours (auto)"
Decoded = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
Decode = Callable[[bytes, Sequence[int]], Decoded]


def run(bench: Bench) -> list[Table]:
    decoders, absent = _decoders(bench)
    sets: dict[str, tuple[list[bytes], int]] = {
        f"clips of the data set, {bench.composition.frame_size} px": (
            media.small_clips(bench, 2 if bench.quick else 24),
            bench.composition.frames,
        )
    }
    seconds = 1 if bench.quick else 10
    total = seconds * media.FPS
    for name, gop in (("a keyframe a second", media.FPS), ("one keyframe", total)):
        sets[f"640 x 360, {seconds} s, {name}"] = ([media.long_clip(seconds, gop)], total)
    rows: list[Row] = []
    furthest: dict[str, float] = {}
    for title, (clips, total) in sets.items():
        for frames in (2,) if bench.quick else (2, 8):
            positions = [int((run + 0.5) / frames * total) for run in range(frames)]
            paths = {
                name: partial(_all, decode, clips, positions) for name, decode in decoders.items()
            }
            _compare(decoders, clips[0], positions, furthest)
            turns = bench.time(paths, 5)
            rows += costs(NAME, f"{title}, {frames} frames", turns, PEER, "ms", 1000.0)
    agreement = ", ".join(f"{name} {value:.1f}" for name, value in furthest.items())
    policy = DecodePolicy(2).resolved()
    return [
        Table(
            NAME,
            "milliseconds a clip for n frames in RGB and all sound, mono at 16 kHz",
            f"{bench.described}; {media.described(seconds)}",
            f"{PEER}: decode_sample with decode.backend=auto, here {policy.backend}, pictures by "
            f"torchcodec {package_version('torchcodec')}, sound by PyAV {av.__version__}",
            "speed relative to the peer: above 1 is faster than ours",
            rows,
            [
                "Every decoder has one thread and is opened for each clip. wall s and CPU s are of "
                "one turn over all clips.",
                "The ffmpeg subprocess runs twice a clip, for pictures (select filter, raw) and "
                f"for sound (wav), from a file: {_ffmpeg_version()}.",
                "Furthest mean difference of a clip's pictures to ours, levels of 255: "
                f"{agreement}.",
                *absent,
            ],
        )
    ]


def _decoders(bench: Bench) -> tuple[dict[str, Decode], list[str]]:
    """What loads here, ours first, and a sentence for each that does not."""
    found: dict[str, Decode] = {PEER: partial(_ours, "auto"), "ours (pyav)": partial(_ours, "pyav")}
    absent: list[str] = []
    failure = why_torchcodec_fails()
    if failure:
        absent.append(f"torchcodec does not load here: {failure}.")
    else:
        found["ours (torchcodec)"] = partial(_ours, "torchcodec")
        found["torchcodec alone"] = _torchcodec
    found["PyAV, all frames"] = _pyav
    try:
        decord = _import_decord()
    except (ImportError, OSError) as error:
        absent.append(f"decord is not in the table, it does not import ({error}).")
    else:
        found[f"decord {decord.__version__}"] = partial(_decord, decord)
    try:
        _ffmpeg_version()
    except OSError:
        absent.append("ffmpeg is not on PATH: no subprocess in the table.")
    else:
        found["ffmpeg subprocess"] = _ffmpeg
    return found, absent


def _all(decode: Decode, clips: Sequence[bytes], positions: Sequence[int]) -> int:
    for clip in clips:
        decode(clip, positions)
    return len(clips)


def _compare(
    decoders: dict[str, Decode],
    clip: bytes,
    positions: Sequence[int],
    furthest: dict[str, float],
) -> None:
    """Keep how far each decoder's pictures are from ours: other frames would be far."""
    ours, sound = decoders[PEER](clip, positions)
    for name, decode in decoders.items():
        pictures, heard = decode(clip, positions)
        if pictures.shape != ours.shape or abs(len(heard) - len(sound)) > RATE // 10:
            raise ValueError(
                f"{name} gives pictures {pictures.shape} and {len(heard)} samples, ours "
                f"{ours.shape} and {len(sound)}: they do not do the same work"
            )
        if name != PEER:
            apart = float(np.abs(pictures.astype(np.int16) - ours).mean())
            furthest[name] = max(apart, furthest.get(name, 0.0))


def _ours(backend: Any, clip: bytes, positions: Sequence[int]) -> Decoded:
    """The policy `uniform` chooses the same positions by itself."""
    policy = DecodePolicy(len(positions), backend=backend)
    made = decode_sample({"mp4": clip}, key="clip", policy=policy, sample_rate=RATE)
    return made.frames, made.audio


def _torchcodec(clip: bytes, positions: Sequence[int]) -> Decoded:
    """As its documentation shows it: each decoder scans the file for itself."""
    decoders = import_module("torchcodec.decoders")
    video = decoders.VideoDecoder(clip, dimension_order="NHWC", num_ffmpeg_threads=1)
    pictures = video.get_frames_at(list(positions)).data.numpy()
    sound = decoders.AudioDecoder(clip, sample_rate=RATE, num_channels=1).get_all_samples()
    return pictures, sound.data.numpy()[0]


def _pyav(clip: bytes, positions: Sequence[int]) -> Decoded:
    """Every frame is decoded and the wanted ones are converted."""
    with av.open(io.BytesIO(clip)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        wanted = set(positions)
        found = {
            number: frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(video=0))
            if number in wanted
        }
    pieces: list[npt.NDArray[np.float32]] = []
    with av.open(io.BytesIO(clip)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        for frame in container.decode(audio=0):
            pieces += [piece.to_ndarray()[0] for piece in resampler.resample(frame)]
        pieces += [piece.to_ndarray()[0] for piece in resampler.resample(None)]
    return np.stack([found[number] for number in positions]), np.concatenate(pieces)


def _import_decord() -> Any:
    """From the folder that `make bench-data` installs it into."""
    if str(BENCH_PACKAGES) not in sys.path:
        sys.path.append(str(BENCH_PACKAGES))
    return import_module("decord")


def _decord(decord: Any, clip: bytes, positions: Sequence[int]) -> Decoded:
    video = decord.VideoReader(io.BytesIO(clip), num_threads=1)
    pictures = video.get_batch(list(positions)).asnumpy()
    sound = decord.AudioReader(io.BytesIO(clip), sample_rate=RATE, mono=True)
    return pictures, sound[:].asnumpy()[0]


def _ffmpeg(clip: bytes, positions: Sequence[int]) -> Decoded:
    """mp4 with its index at the end cannot be read from a pipe, so the clip becomes a file."""
    chosen = "+".join(rf"eq(n\,{position})" for position in positions)
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(clip)
        file.flush()
        start = ["ffmpeg", "-nostdin", "-loglevel", "error", "-threads", "1", "-i", file.name]
        as_images = ["-vsync", "0", "-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
        as_sound = ["-vn", "-ac", "1", "-ar", str(RATE), "-f", "wav", "pipe:1"]
        images = _output([*start, "-an", "-vf", f"select={chosen}", *as_images])
        sound = _output([*start, *as_sound])
    _, size, _, _ = images.split(b"\n", 3)
    width, height = map(int, size.split())
    header = len(images) // len(positions) - 3 * width * height
    flat = np.frombuffer(images, np.uint8).reshape(len(positions), -1)[:, header:]
    # A wav header of ffmpeg's has an INFO chunk before the samples.
    heard = np.frombuffer(sound[sound.index(b"data") + 8 :], np.int16)
    return flat.reshape(-1, height, width, 3), (heard / np.float32(32768)).astype(np.float32)


def _output(command: list[str]) -> bytes:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def _ffmpeg_version() -> str:
    return " ".join(_output(["ffmpeg", "-version"]).decode().split()[:3])
