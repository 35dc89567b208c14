"""One video stream, decoded in order or at given times, by PyAV (FFmpeg's libraries). Nothing is kept but one frame.

Seconds count from the stream's start and come from the file's time stamps, so a variable frame rate and frames that are
stored out of order (B-frames) are right; a stream without time stamps (raw H.264) is counted at its frame rate.

    within    the formats and codecs below: each other one is one more parser that a hostile file could reach
    bounded   pixels of a frame before and while it is decoded, pixels decoded in all, bytes of a picture handed out
    no other  file or address is opened: playlists are no format here, and references to other files are not followed

Not handled: HDR tones (shown as they are stored), alpha, interlaced fields (both lines of a pair are shown).
"""

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from gemworks.errors import BackendError, RequestError
from gemworks.media.decode import Limits

# FFmpeg's names of demuxers and of the codecs that cameras, phones, browsers and screen recorders write.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf,obu"
_CODECS = {
    *("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3"),
    *("wmv1", "wmv2", "wmv3", "vc1", "h263", "flv1", "mjpeg", "gif", "theora", "prores", "dnxhd", "ffv1", "png"),
    "rawvideo",
}
_NAMED_FORMATS = "MP4, MOV, MKV, WebM, AVI, MPEG, FLV, Ogg, WMV or GIF"

# A target this far ahead is reached by way of the key frame before it; nearer ones by decoding on. Encoders put a key
# frame every 2 to 10 s.
_SEEK_S = 2.0

# How much earlier to look where a seek lands too late: files that are indexed by decoding order land a frame or two
# late, and broadcast streams, which have no index, at the next key frame.
_BACK_S = (0.0, 2.0, 12.0, 40.0)

# Pixels decoded for one call: 20 minutes of 1080p at 30 frames a second, some minutes of one core. Reached only where
# key frames are hours apart, or by a file that says "the same again" ten thousand times in a kilobyte.
_MOST_DECODED = 75_000_000_000

# What may lack at the end of a whole file: the length in a header is rounded, and the last frame's own length unknown.
_LACKING_S, _LACKING_SHARE = 1.0, 0.1

# The upper left 2 x 2 of a display matrix (signs, row by row) -> how the stored picture is turned to be shown.
_TURNS: dict[tuple[int, ...], Image.Transpose] = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def import_av() -> Any:
    """Return PyAV. Raises BackendError with the line that installs it."""
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BackendError(
            'reading a video needs PyAV, and it is not installed. pip install "gemworks[video]"'
        ) from error
    return av


class VideoFile:
    """The first video stream of a file. Raises RequestError for what is wrong with the file, in every method.

    Use it in a `with`; the file stays the caller's. `seconds` is where the last frame ends.
    """

    def __init__(self, file: BinaryIO, name: str, limits: Limits):
        self._file, self._name, self._limits = file, name, limits
        self._av = import_av()
        self._decoded = 0
        self._counts = False  # no time stamps: seconds are frames by the rate
        self._container: Any = None
        self._stream: Any = None
        try:
            self._open()
            self.seconds = self._guarded(self._length)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give decoders back."""
        if self._container is not None:
            self._container.close()
        self._container = self._stream = None

    def every(self, *, keys_only: bool = False) -> Iterator[tuple[float, Any]]:
        """Yield (seconds, frame) of all frames in order, or of those that need no other to be decoded."""
        self._open()
        if keys_only:
            self._stream.codec_context.skip_frame = "NONKEY"
        yield from self._frames()

    def shown_at(self, wanted: Iterable[float]) -> Iterator[tuple[float, Any]]:
        """Yield (seconds, frame) of what is on the screen at each of some ascending times, no frame twice.

        Seeks where that pays: not where key frames are further apart than the times.
        """
        self._open()
        frames, seeks = self._frames(), not self._counts
        shown, coming, told = None, next(frames, None), -math.inf
        for target in wanted:
            if seeks and coming is not None and target - coming[0] > _SEEK_S:
                frames.close()
                frames = self._frames_before(target)
                landed = next(frames, None)
                if landed is None or landed[0] > target:  # no key frame where the file says there is one
                    self._open()
                    frames, seeks, shown = self._frames(), False, None
                    coming = next(frames, None)
                else:
                    seeks = shown is None or landed[0] > shown[0]
                    shown, coming = None, landed
            while coming is not None and coming[0] <= target + 1e-6:
                shown, coming = coming, next(frames, None)
            if (frame := shown or coming) is not None and frame[0] > told:
                told = frame[0]
                yield frame

    def picture(self, frame: Any, max_pixels: float) -> Image.Image:
        """Return a frame as an upright RGB picture of square pixels, scaled down to `max_pixels`."""
        ratio = self._stream.sample_aspect_ratio or 1
        width, height = frame.width * (float(ratio) if 1 / 4 <= ratio <= 4 else 1.0), frame.height
        scale = min(1.0, math.sqrt(max_pixels / (width * height)))
        told = {"width": max(1, int(width * scale)), "height": max(1, int(height * scale)), "interpolation": "AREA"}
        image = self._guarded(lambda: frame.to_image(**told))
        turn = _TURNS.get(_matrix(frame))
        return image if turn is None else image.transpose(turn)

    def thumbnail(self, frame: Any, side: int) -> np.ndarray:
        """Return uint8 [side, side, 3]: the means of a frame's parts, as it is stored."""
        return np.asarray(self._guarded(lambda: frame.to_image(width=side, height=side, interpolation="AREA")))

    # -- the container -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Begin anew, at the first frame."""
        self.close()
        self._file.seek(0)
        told = {"options": {"format_whitelist": _FORMATS}, "metadata_errors": "replace"}
        try:
            self._container = self._av.open(self._file, "r", **told)
        except self._av.FFmpegError as error:
            raise RequestError(
                f"{self._name}: a video must be {_NAMED_FORMATS}, and whole, got something else or one that is cut off "
                "or damaged.\nFetch or save it again."
            ) from error
        except (ValueError, OverflowError, UnicodeError) as error:
            raise self._broken(error) from error
        self._stream = self._guarded(self._video_stream)

    def _video_stream(self) -> Any:
        """The first stream of moving pictures, ready to be decoded; a cover of a song is none."""
        attached = self._av.stream.Disposition.attached_pic
        streams = [stream for stream in self._container.streams.video if not stream.disposition & attached]
        if not streams:
            others = sorted({stream.type for stream in self._container.streams}) or ["no stream"]
            raise RequestError(f"{self._name}: a video must have moving pictures, got {' and '.join(others)} only.")
        codec = streams[0].codec_context
        if codec is None or codec.name not in _CODECS:
            got = codec.name if codec is not None else "one that nobody knows"
            raise RequestError(
                f"{self._name}: a video must be of a codec that is read here, got {got}.\nConvert it to H.264."
            )
        self._check_size(codec.width, codec.height)  # 0 where only a frame tells
        codec.options = {"max_pixels": str(self._limits.max_pixels)}
        return streams[0]

    def _length(self) -> float:
        """Seconds up to the end of the last frame; RequestError where the file ends before it says so."""
        stream, container = self._stream, self._container
        start = self._start
        if stream.duration is not None and stream.duration > 0:
            claimed = float(stream.duration * stream.time_base)
        elif container.duration is not None and container.duration > 0:
            claimed = container.duration / self._av.time_base - max(0.0, start - (container.start_time or 0) / 1e6)
        else:
            claimed = None
        end = None
        for back in _BACK_S[1:]:  # of a long file only the end is read
            if end is None and claimed is not None and claimed > 2 * back and self._seek(claimed - back):
                end = self._packets_end()
        if end is None:
            self._open()
            end = self._packets_end()
        if end is None:
            raise self._broken("no frame could be found")
        video_s, all_s, is_cut = end
        if is_cut or (claimed is not None and all_s < claimed - max(_LACKING_S, _LACKING_SHARE * claimed)):
            raise RequestError(
                f"{self._name}: a video must be whole, got {all_s:.1f} s of {claimed or all_s:.1f} s.\n"
                "The file is cut off or damaged: fetch or save it again."
            )
        return video_s

    @property
    def _start(self) -> float:
        return float((self._stream.start_time or 0) * self._stream.time_base)

    def _packets_end(self) -> tuple[float, float, bool] | None:
        """Read on to the end without decoding: seconds of the video, of all streams, and whether the last is cut."""
        ends: dict[int, float] = {}
        count, is_cut = 0, False
        for packet in self._container.demux():
            if not packet.size:
                continue
            is_video = packet.stream_index == self._stream.index
            if is_video:
                count += 1
                is_cut = packet.is_corrupt and self._container.format.name != "mpegts"  # recordings of a broadcast
            at = packet.pts if packet.pts is not None else packet.dts
            if at is not None and packet.time_base:
                end = float((at + (packet.duration or 0)) * packet.time_base) - self._start
                ends[packet.stream_index] = max(end, ends.get(packet.stream_index, 0.0))
        if not count:
            return None
        self._counts = self._stream.index not in ends
        video_s = count / self._rate if self._counts else ends[self._stream.index]
        return video_s, max([video_s, *ends.values()]), is_cut

    @property
    def _rate(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate and 0.001 < rate < 1000 else 25.0

    def _seek(self, seconds: float) -> bool:
        stream = self._stream
        try:
            self._container.seek(int((self._start + seconds) / stream.time_base), stream=stream)
        except (self._av.FFmpegError, OverflowError):
            return False
        return True

    # -- frames --------------------------------------------------------------------------------------------------

    def _frames_before(self, target: float) -> Generator[tuple[float, Any]]:
        """Frames from the last key frame at or before a time."""
        for back in _BACK_S:
            if not self._seek(max(0.0, target - back)):
                break
            frames = self._frames()
            first = next(frames, None)
            if first is not None and first[0] <= target:
                yield first
                yield from frames
                return

    def _frames(self) -> Generator[tuple[float, Any]]:
        """Frames from here on with their seconds. What one packet has lost is passed over; RequestError for most."""
        good = bad = 0
        packets = self._container.demux(self._stream)
        while (packet := self._guarded(lambda: next(packets, None))) is not None:
            try:
                frames = packet.decode()
            except MemoryError:
                raise
            except Exception as error:  # FFmpeg's many
                bad += 1
                if bad > max(8, good):
                    raise self._broken(error) from error
                continue
            for frame in frames:
                self._check_size(frame.width, frame.height)
                self._count(frame.width * frame.height)
                seconds = good / self._rate if self._counts else self._seconds(frame)
                good += 1
                if seconds is not None:
                    yield seconds, frame
        if bad and not good:
            raise self._broken("no frame could be decoded")

    def _seconds(self, frame: Any) -> float | None:
        at = frame.pts if frame.pts is not None else frame.dts
        return None if at is None else float(at * frame.time_base) - self._start

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise RequestError(
                f"{self._name}: a video must have at most {self._limits.max_pixels:,} pixels a frame, "
                f"got {width:,} x {height:,}.\nScale it down: the model sees 896 x 896 of them."
            )

    def _count(self, pixels: int) -> None:
        self._decoded += pixels
        if self._decoded > _MOST_DECODED:
            raise RequestError(
                f"{self._name}: a video must give its frames within {_MOST_DECODED:,} decoded pixels, got more.\n"
                "Scale it down, cut out the part that matters, or save it with more key frames."
            )

    def _guarded(self, work: Any) -> Any:
        """Call what may stumble over the file's content."""
        try:
            return work()
        except (RequestError, MemoryError):
            raise
        except Exception as error:  # PyAV raises FFmpegError, OSError, ValueError, OverflowError and others
            raise self._broken(error) from error

    def _broken(self, error: Exception | str) -> RequestError:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        return RequestError(
            f"{self._name}: a video must be whole, got one with: {reason}.\n"
            "The file is cut off or damaged: fetch or save it again."
        )


def _matrix(frame: Any) -> tuple[int, ...]:
    """The signs of the display matrix's upper left 2 x 2; the identity where there is none."""
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return 1, 0, 0, 1
    values: Sequence[int] = np.frombuffer(bytes(stored)[:36], np.int32)[[0, 1, 3, 4]].tolist()
    return tuple(round(value / 65536) for value in values)
