"""Pictures by PyAV: only the packets that a wanted frame depends on are decoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vlmae.data.decode.clip import BadClipError, Frames
from vlmae.data.decode.container import PictureIndex, opened


def read_pictures(
    container: av.container.InputContainer,
    media: bytes,
    index: PictureIndex,
    times: Sequence[int],
    key: str,
) -> Frames:
    """Frames shown at `times`, upright.

    Args:
        container: the open file, anywhere in it.
        media: its bytes, to open it again if it cannot be wound back.
        index: its packets.
        times: presentation times, in units of the stream's time base, ascending.
        key: for messages.

    Returns:
        (len(times), H, W, 3) uint8 RGB.

    Raises:
        BadClipError: a frame cannot be decoded, or the frames are of several sizes.
    """
    reader = _Reader(index, set(times))
    damage = ""
    if index.has_times:
        reader.jump(container)
    if reader.missing:
        # Damage, a keyframe from which decoding cannot begin, or a packet without a frame.
        with opened(media, key) as again:
            damage = reader.walk(again)
    if reader.missing:
        raise BadClipError(key, "undecodable frames", damage or "fewer frames than packets")
    chosen = [reader.pictures[time] for time in times]
    sizes = {picture.shape for picture in chosen}
    if len(sizes) > 1:
        named = ", ".join(f"{width} x {height}" for height, width, _ in sorted(sizes))
        raise BadClipError(key, "frames of several sizes", named)
    return np.stack(chosen)


def runs(index: PictureIndex, wanted: set[int]) -> list[tuple[int, int]]:
    """First and last number of the packets to decode for frames `wanted`, in decoding order.

    Each run begins at a keyframe, or at the first packet; runs that touch are one.
    """
    found: list[tuple[int, int]] = []
    for last, (time, is_shown) in enumerate(zip(index.times, index.shown, strict=True)):
        if time not in wanted or not is_shown:
            continue
        # A frame shown before a keyframe but stored behind it needs the keyframe before that one.
        first = last
        while first > 0 and not (index.keyframes[first] and index.times[first] <= time):
            first -= 1
        while found and found[-1][1] >= first - 1:
            first = min(first, found.pop()[0])
        found.append((first, last))
    return found


class _Reader:
    """Looks for the wanted frames of one stream; `pictures` holds what was found, by time."""

    def __init__(self, index: PictureIndex, wanted: set[int]) -> None:
        self.pictures: dict[int, Frames] = {}
        self._index = index
        self._wanted = wanted
        self._reformatter = VideoReformatter()

    @property
    def missing(self) -> set[int]:
        return self._wanted - set(self.pictures)

    def jump(self, container: av.container.InputContainer) -> None:
        """Decode runs of packets and skip what lies between.

        It gives up at the first damage, and in a file that does not begin again with the first
        packet of the index: `walk` reads both.
        """
        pending = runs(self._index, self._wanted)[::-1]
        stream = self._stream(container)
        decoder = stream.codec_context
        try:
            container.seek(0)
            decoder.flush_buffers()
            for number, packet in enumerate(container.demux(stream)):
                if number == 0 and packet.pts != self._index.times[0]:
                    return
                if number < pending[-1][0]:
                    continue
                frames = decoder.decode(packet)
                if number == pending[-1][1]:
                    frames += decoder.decode(None)
                    decoder.flush_buffers()
                    pending.pop()
                for frame in frames:
                    if frame.pts in self._wanted and frame.pts not in self.pictures:
                        self._keep(frame.pts, frame)
                if not pending:
                    return
        except av.error.FFmpegError:
            return

    def walk(self, container: av.container.InputContainer) -> str:
        """Decode everything, from the start; returns the last damage met, "" if there was none.

        Without damage, a wanted time without a frame of its own gets the frame on screen then: VP8
        has packets that are never shown. A file without presentation times is read by its order.
        """
        damage = ""
        order = sorted(self._index.times)
        pending = sorted(self.missing)
        before: av.VideoFrame | None = None
        count = 0
        for frame in self._decoded(container):
            if isinstance(frame, str):
                damage = frame
                continue
            time = frame.pts if self._index.has_times else order[min(count, len(order) - 1)]
            count += 1
            if time is None:
                continue
            while pending and pending[0] <= time:
                if pending[0] == time:
                    self._keep(time, frame)
                elif before is not None and not damage:
                    self._keep(pending[0], before)
                pending.pop(0)
            if not pending:
                break
            before = frame
        return damage

    def _decoded(self, container: av.container.InputContainer) -> Iterator[av.VideoFrame | str]:
        """Frames in the order shown; a message in place of what a damaged packet held."""
        for packet in container.demux(self._stream(container)):
            try:
                yield from packet.decode()
            except av.error.FFmpegError as error:
                yield str(error)

    def _stream(self, container: av.container.InputContainer) -> av.VideoStream:
        stream = container.streams[self._index.stream]
        stream.codec_context.thread_count = 1
        return stream

    def _keep(self, time: int, frame: av.VideoFrame) -> None:
        """As (H, W, 3), turned by the display matrix: quarter turns only, as torchcodec does."""
        # One thread and one context for all frames: by default a pool is started for each.
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        picture = np.asarray(rgb.to_ndarray(), np.uint8)
        self.pictures[time] = np.rot90(picture, round(frame.rotation / 90) % 4)
