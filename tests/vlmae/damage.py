"""Ten ways in which clips are damaged, for tests that count bad clips by their reason.

members = damage(media, kind, seed)         # KINDS lists the kinds
decode_sample(members, ...)                 # raises BadClipError with REASONS[kind]
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

REASONS = {
    "truncated_data": "truncated file",
    "truncated_index": "undecodable file",
    "not_media": "undecodable file",
    "empty": "empty file",
    "flipped": "undecodable frames",
    "no_packets": "neither picture nor sound",
    "unknown_codec": "unknown video codec",
    "damaged_image": "undecodable image",
    "no_media": "no media member",
    "damaged_json": "undecodable title",
}
KINDS = tuple(REASONS)


def damage(media: bytes, kind: str, seed: int) -> dict[str, bytes]:
    """Members of one damaged clip.

    Args:
        media: a whole mp4 with H.264 pictures and its index (`moov`) behind them, as FFmpeg and
            `vlmae.prepare` write it.
        kind: one of `KINDS`.
        seed: chooses where and how, the same every time.

    Raises:
        ValueError: `kind` is none of `KINDS`, or `media` has its index first.
    """
    if kind not in KINDS:
        raise ValueError(f"damage {kind!r} is unknown: use one of {', '.join(KINDS)}")
    if not 0 < media.find(b"mdat") < media.rfind(b"moov"):
        raise ValueError("the media cannot be damaged in ten ways: give an mp4 with its index last")
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    title = json.dumps({"title": f"damaged clip {seed}"}).encode()
    if kind == "truncated_data":  # the index is in front and whole, packets are lost
        whole = _index_first(media)
        start = whole.index(b"mdat")
        return {
            "mp4": whole[: start + int(rng.uniform(0.1, 0.9) * (len(whole) - start))],
            "json": title,
        }
    if kind == "truncated_index":  # the index is at the end, and lost
        return {"mp4": media[: int(rng.uniform(0.2, 1.0) * media.rindex(b"moov"))], "json": title}
    if kind == "not_media":
        page = f"<html><body>404 Not Found: clip {seed}</body></html>\n".encode() * 20
        return {"mp4": page if rng.integers(2) else rng.bytes(len(media)), "json": title}
    if kind == "empty":
        return {"mp4": b"", "json": title}
    if kind == "flipped":
        return {"mp4": _flipped(media, rng), "json": title}
    if kind == "no_packets":
        return {"mp4": _without_packets(media), "json": title}
    if kind == "unknown_codec":
        entry = media.index(b"avc1", media.index(b"stsd"))
        return {"mp4": media[:entry] + b"zzzz" + media[entry + 4 :], "json": title}
    if kind == "damaged_image":
        image = _image(media)
        return {"jpg": image[: int(rng.uniform(0.3, 0.7) * len(image))], "json": title}
    if kind == "no_media":
        return {"json": title}
    return {"mp4": media, "json": title[: int(rng.integers(1, len(title)))]}  # damaged_json


def _index_first(media: bytes) -> bytes:
    # In a file: to move the index to the front, FFmpeg opens what it wrote a second time.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "media.mp4"
        with (
            av.open(io.BytesIO(media)) as source,
            av.open(path, "w", options={"movflags": "faststart"}) as target,
        ):
            streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
        return path.read_bytes()


def _flipped(media: bytes, rng: np.random.Generator) -> bytes:
    """Bits flipped in every byte of the packets; the index is whole."""
    start, end = media.index(b"mdat") + 4, media.rindex(b"moov") - 4
    flips = rng.integers(1, 256, end - start, np.uint8)
    packets = np.frombuffer(media[start:end], np.uint8) ^ flips
    return media[:start] + packets.tobytes() + media[end:]


def _without_packets(media: bytes) -> bytes:
    """The header of the file alone; only a fragmented mp4 can list its tracks without a packet."""
    buffer = io.BytesIO()
    options = {"movflags": "empty_moov+default_base_moof+frag_keyframe"}
    with (
        av.open(io.BytesIO(media)) as source,
        av.open(buffer, "w", format="mp4", container_options=options) as target,
    ):
        for stream in source.streams:
            target.add_stream_from_template(stream)
        target.start_encoding()
    return buffer.getvalue()


def _image(media: bytes) -> bytes:
    with av.open(io.BytesIO(media)) as source:
        picture = next(source.decode(video=0)).to_ndarray(format="rgb24")
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
