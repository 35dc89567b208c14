"""Frames of videos: which ones, when they are from, and one clear error for what is no video."""

import importlib.util
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemworks.errors import BackendError, RequestError
from gemworks.media import Limits, read_frames
from gemworks.media.video import most_different
from gemworks.media.video_file import VideoFile

if importlib.util.find_spec("av") is None:
    pytest.skip('no PyAV: pip install "gemworks[video]"', allow_module_level=True)

spec = importlib.util.spec_from_file_location("videos", Path(__file__).with_name("videos.py"))
assert spec is not None and spec.loader is not None
videos = importlib.util.module_from_spec(spec)
spec.loader.exec_module(videos)

LEVELS = 25  # of the grey that tells a frame; eight steps apart, so that no codec confuses two


def shades(count: int) -> list[np.ndarray]:
    """`count` frames that go through LEVELS shades, each the same number of times."""
    return [videos.levels(LEVELS)[i * LEVELS // count] for i in range(count)]


def seen(frames) -> list[tuple[float, int]]:
    assert all(frame.image.mode == "RGB" for frame in frames)
    return [(round(frame.seconds, 3), videos.level_of(frame.image, LEVELS)) for frame in frames]


def refusal(source, **options) -> str:
    with pytest.raises(RequestError) as caught:
        read_frames(source, **options)
    message = str(caught.value)
    first = message.splitlines()[0]
    assert " must " in first and ", got" in first and len(message.splitlines()) <= 3, message
    return message


@pytest.fixture(scope="module")
def clip() -> bytes:
    """Five seconds, a shade each 0.2 s, a key frame a second, with B-frames."""
    return videos.encode(shades(50), codec_options={"g": "10", "bf": "2"})


# -- which frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "codec"), [(kind, codec) for kind, codecs in videos.KINDS.items() for codec in codecs]
)
def test_the_middles_of_equal_parts_in_every_format(kind, codec):
    """Two seconds at 25 frames each; the middles of five parts are 0.2, 0.6, 1.0, 1.4 and 1.8 s."""
    frames = read_frames(videos.encode(shades(50), kind, codec, rate=25), max_frames=5)
    assert seen(frames) == [(0.2, 2), (0.6, 7), (1.0, 12), (1.4, 17), (1.8, 22)]
    assert all(frame.image.size == (64, 48) for frame in frames)


@pytest.mark.parametrize("kind", ["mp4", "matroska"])
@pytest.mark.parametrize("codec_options", [{"bf": "0"}, {"bf": "4", "g": "50", "b_strategy": "0"}], ids=["I, P", "B"])
def test_a_variable_frame_rate(kind, codec_options):
    """What is on the screen in the middles of the parts, by the time stamps, in whatever order frames are stored."""
    rng = np.random.default_rng(1)
    times = np.cumsum([0.0, *rng.choice([0.04, 0.1, 0.9, 2.5], LEVELS - 1)]).round(3)
    data = videos.encode(videos.levels(LEVELS), kind, times=times, rate=25, codec_options=codec_options)
    with_end = seen(read_frames(data, max_frames=1))[0]  # the middle: where the file says it ends
    for count in (2, 5, 9):
        got = seen(read_frames(data, max_frames=count))
        ends = [end for end in np.arange(times[-1], times[-1] + 3, 0.01) if _shown(times, end, count) == got]
        assert ends, (got, times)
    assert with_end[0] in times


def _shown(times, end: float, count: int) -> list[tuple[float, int]]:
    """What a player shows at the middles, of a video that ends at `end`."""
    at = [int(np.searchsorted(times, (i + 0.5) * end / count + 1e-6, side="right")) - 1 for i in range(count)]
    return [(float(times[i]), i) for i in dict.fromkeys(at)]


def test_few_frames_are_not_shown_twice(clip):
    one = videos.encode([videos.flat(100)])
    assert len(read_frames(one)) == len(read_frames(one, sampling="scenes")) == 1
    three = read_frames(videos.encode(videos.levels(3)), max_frames=8)
    assert [videos.level_of(frame.image, 3) for frame in three] == [0, 1, 2]
    assert len(read_frames(clip, max_frames=128)) == 50


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((1, 0, 0, 1), lambda a: a),
        ((0, 1, -1, 0), lambda a: np.rot90(a, -1)),  # a phone held upright
        ((-1, 0, 0, -1), lambda a: np.rot90(a, 2)),
        ((0, -1, 1, 0), lambda a: np.rot90(a)),
        ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
        ((1, 0, 0, -1), lambda a: a[::-1]),
        ((0, 1, 1, 0), lambda a: a.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    ],
)
def test_the_display_matrix_turns(matrix, turn):
    corners = np.zeros((48, 64, 3), np.uint8)
    corners[:24, :32], corners[:24, 32:], corners[24:, :32] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    data = videos.turned(videos.encode([corners] * 3), matrix)
    got = np.asarray(read_frames(data, max_frames=1)[0].image).astype(int)
    expected = turn(corners)
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 12  # colour is stored at half the resolution


def test_pixels_that_are_not_square():
    data = videos.encode([videos.flat(100)] * 3, aspect=Fraction(2, 1))
    assert read_frames(data)[0].image.size == (128, 48)


def test_the_measure_of_scenes():
    """Least differences by hand: from the middle row to the others 0, 30, 100; then from both."""
    means = np.uint8([[100] * 4, [130] * 4, [0] * 4, [100] * 4, [128] * 4, [102] * 4])
    assert most_different(means, 1) == [3]
    assert most_different(means, 2) == [3, 2]
    assert most_different(means, 6) == [3, 2, 1]  # 128 is 2 from 130, 102 is 2 from 100


@pytest.mark.parametrize("kind", ["mp4", "webm", "h264"])
def test_scenes_however_short_are_seen_once(kind):
    """Grey 40 for two seconds, five frames of 230, 40 again, 120: the flash is no middle of any part."""
    shots = [40] * 50 + [230] * 5 + [40] * 25 + [120] * 20
    data = videos.encode([videos.flat(value) for value in shots], kind, rate=25)
    frames = read_frames(data, sampling="scenes", max_frames=8)
    got = [round(np.asarray(frame.image).mean() / 10) for frame in frames]
    assert sorted(got) == [4, 12, 23]
    assert [frame.seconds for frame in frames] == sorted(frame.seconds for frame in frames)
    assert 2.0 <= frames[got.index(23)].seconds < 2.2 and 3.2 <= frames[got.index(12)].seconds < 4
    two = read_frames(data, sampling="scenes", max_frames=2)
    assert sorted(round(np.asarray(frame.image).mean() / 10) for frame in two) == [4, 23]


def test_noise_of_compression_is_no_scene():
    rng = np.random.default_rng(0)
    room = rng.integers(40, 200, (6, 8, 3)).repeat(40, 0).repeat(40, 1).astype(int)
    shots = [np.uint8(np.clip(room + rng.normal(0, 12, room.shape), 0, 255)) for _ in range(30)]
    assert len(read_frames(videos.encode(shots, codec_options={"crf": "40"}), sampling="scenes")) == 1


# -- what a file says of itself --------------------------------------------------------------------------------------


class Pipe:
    """A file that can only be written on: muxers cannot go back and fill in the length."""

    def __init__(self):
        self.data = b""

    def write(self, data):
        self.data += bytes(data)
        return len(data)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("matroska", {}),
        ("webm", {"live": "1"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("flv", {"flvflags": "no_duration_filesize"}),
        ("mpegts", {}),
    ],
)
def test_streams_without_a_duration(kind, options):
    pipe = Pipe()
    videos.encode(shades(50), kind, rate=25, options=options, path=pipe)
    assert seen(read_frames(pipe.data, max_frames=5)) == [(0.2, 2), (0.6, 7), (1.0, 12), (1.4, 17), (1.8, 22)]


def test_sound_may_be_longer_than_the_pictures():
    for kind in ("mp4", "matroska"):
        data = videos.encode(shades(50), kind, rate=25, audio_s=9.0)
        assert seen(read_frames(data, max_frames=5)) == [(0.2, 2), (0.6, 7), (1.0, 12), (1.4, 17), (1.8, 22)]


def test_the_resolution_may_change():
    first, second = (videos.encode([videos.flat(99, size)] * 10, "h264", rate=25) for size in ((64, 48), (320, 240)))
    assert [frame.image.size for frame in read_frames(first + second, max_frames=2)] == [(64, 48), (320, 240)]
    few = Limits(max_pixels=64 * 48)
    assert "a video must be whole" in refusal(first + second, limits=few)  # as the decoder says no more


# -- how much is decoded and kept --------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Pixels of each frame that was decoded."""
    counted: list[int] = []
    monkeypatch.setattr(VideoFile, "_count", lambda self, pixels: counted.append(pixels))
    return counted


@pytest.mark.parametrize(("kind", "most"), [("mp4", 0), ("matroska", 0), ("avi", 0), ("mpegts", 80), ("flv", 0)])
def test_a_long_video_is_not_decoded_whole(kind, most, decoded):
    """Six minutes, a key frame every four seconds: a frame costs one stretch of 20 at most."""
    options = {"g": "20", "keyint_min": "20", "bf": "0"}
    data = videos.encode([videos.levels(LEVELS)[i // 72] for i in range(1800)], kind, rate=5, codec_options=options)
    for sampling in ("uniform", "scenes"):
        decoded.clear()
        frames = read_frames(data, max_frames=4, sampling=sampling)
        if sampling == "uniform":
            assert seen(frames) == [(45.0, 3), (135.0, 9), (225.0, 15), (315.0, 21)]
        # Frames are decoded ahead where B-frames may follow; key frames are all looked at for scenes.
        assert len(decoded) <= 4 * 24 + most + (sampling == "scenes") * 92, sampling


def test_without_key_frames_nothing_is_decoded_twice_but_once(decoded):
    data = videos.encode(shades(300), rate=10, codec_options={"g": "9999", "keyint_min": "9999", "sc_threshold": "0"})
    assert len(read_frames(data, max_frames=6)) == 6
    assert len(decoded) <= 2 * 300


def test_what_is_decoded_has_an_end(clip, monkeypatch):
    monkeypatch.setattr("gemworks.media.video_file._MOST_DECODED", 20 * 64 * 48)
    assert "within 61,440 decoded pixels" in refusal(clip, sampling="scenes")
    assert len(read_frames(clip, max_frames=1)) == 1


def test_pictures_share_the_pixels_of_one(monkeypatch):
    data = videos.encode([videos.flat(value, (640, 480)) for value in (50, 150, 250)])
    monkeypatch.setattr("gemworks.media.video._LEAST_PIXELS", 100)
    for count, size in ((1, (640, 480)), (3, (369, 277))):  # a third of the pixels: sides by sqrt(1 / 3)
        frames = read_frames(data, max_frames=count, limits=Limits(max_pixels=640 * 480))
        assert {frame.image.size for frame in frames} == {size}


# -- what is no video ------------------------------------------------------------------------------------------------


def test_limits_are_the_last_that_is_allowed(clip):
    assert len(read_frames(clip, limits=Limits(max_pixels=64 * 48))) == 8
    assert "at most 3,071 pixels a frame, got 64 x 48" in refusal(clip, limits=Limits(max_pixels=64 * 48 - 1))


def test_sizes_that_only_the_codec_knows(clip):
    """The container says 16 x 12, the frames are 64 x 48."""
    at = clip.index(b"avc1", clip.index(b"stsd")) + 28
    assert clip[at : at + 4] == bytes([0, 64, 0, 48])
    smaller = clip[:at] + bytes([0, 16, 0, 12]) + clip[at + 4 :]
    assert "a video must" in refusal(smaller, limits=Limits(max_pixels=64 * 48 - 1))
    gigantic = clip[:at] + b"\xff\xff\xff\xff" + clip[at + 4 :]
    try:
        assert all(frame.image.height == 48 for frame in read_frames(gigantic))
    except RequestError as error:
        assert "65,535 x 65,535" in str(error)


def test_what_is_no_video_at_all(tmp_path, clip):
    os.mkfifo(tmp_path / "pipe.mp4")
    screen = b"GIF89a" + (60_000).to_bytes(2, "little") * 2 + bytes(3)
    frame = b"," + bytes(4) + (60_000).to_bytes(2, "little") * 2 + b"\0\x02\x02D\x01\0;"
    cases = {
        b"": "got 0 bytes",
        b"x": "a video must be MP4",
        b"hello" * 100: "a video must be MP4",
        bytes(5000): "a video must be MP4",
        np.random.default_rng(0).bytes(20_000): "a video must be MP4",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n": "a video must be MP4",
        b"ffconcat version 1.0\nfile /etc/passwd\n": "a video must be MP4",
        b"\x89PNG\r\n\x1a\n" + bytes(50): "got a PNG picture",
        b"\xff\xd8\xff\xe0" + bytes(50): "got a JPEG picture",
        b"RIFF\x10\0\0\0WEBPVP8 ": "got a WebP picture",
        b"RIFF\x10\0\0\0WAVEfmt " + bytes(50): "a video must be",
        clip[:24]: "a video must be",
        screen + frame: "a video must be whole",
        videos.song(): "got audio only",
        videos.song(cover=True): "moving pictures",
        tmp_path: "got a directory",
        tmp_path / "none.mp4": "got none of that name",
        tmp_path / "pipe.mp4": "got a pipe",
        "/dev/zero": "got a device",
        "a\0b": "a video must be readable",
        "https://example.org/a.mp4": "got an address",
        "concat:/etc/passwd|/etc/hosts": "got none of that name",
        None: "got a NoneType",
        7: "got a int",
    }
    for source, says in cases.items():
        for sampling in ("uniform", "scenes"):
            assert says in refusal(source, sampling=sampling), source


def test_a_path_and_its_bytes_are_the_same(tmp_path, clip):
    (tmp_path / "a clip").write_bytes(clip)
    for source in (tmp_path / "a clip", str(tmp_path / "a clip"), bytearray(clip), memoryview(clip)):
        assert seen(read_frames(source)) == seen(read_frames(clip))
    assert "got text" in refusal(tmp_path / "a clip", allow_paths=False)
    assert len(read_frames(clip, allow_paths=False)) == 8
    assert refusal(tmp_path / "b").startswith(f"{tmp_path / 'b'}: a video must")
    assert refusal(b"", name="messages[0].content[1]").startswith("messages[0].content[1]: a video must")


@pytest.mark.parametrize("kind", ["mp4", "faststart", "matroska", "avi"])
def test_a_video_that_is_cut_off(kind, tmp_path):
    """Ten seconds of noise, each file cut at five places. What has no length of its own cannot be known to be cut."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(100)]
    options = {"movflags": "faststart"} if kind == "faststart" else {}
    path = tmp_path / "noise"  # what moves a part of the file to its start opens it again
    videos.encode(noise, kind.replace("faststart", "mp4"), options=options, path=str(path))
    data = path.read_bytes()
    assert len(read_frames(data)) == 8
    for part in (0.005, 0.02, 0.3, 0.6, 0.8):
        assert "whole" in refusal(data[: int(len(data) * part)], name=f"{kind} {part}")


def test_damage_in_the_middle_is_frames_or_one_error(clip, capfd):
    rng = np.random.default_rng(2)
    outcomes = set()
    for kind in ("mp4", "matroska", "mpegts", "avi", "gif"):
        data = videos.encode(shades(25), kind)
        for number in range(12):
            broken = np.frombuffer(data, np.uint8).copy()
            at = rng.integers(0, len(data), 2 ** (number // 3))
            broken[at] = rng.integers(0, 256, len(at))
            try:
                outcomes.add(len(read_frames(broken.tobytes(), sampling=("uniform", "scenes")[number % 2])) > 0)
            except RequestError as error:
                assert "video: a video must" in str(error)
                outcomes.add(False)
    assert outcomes == {True, False}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_frames": 0}, "max_frames must be a whole number from 1 to 128, got 0"),
        ({"max_frames": 129}, "got 129"),
        ({"max_frames": True}, "got True"),
        ({"max_frames": 2.5}, "got 2.5"),
        ({"sampling": "best"}, 'sampling must be "uniform" or "scenes", got \'best\''),
    ],
)
def test_arguments_without_sense_are_refused(clip, options, says):
    assert says in refusal(clip, **options)


def test_without_pyav_the_error_says_what_to_install(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match=r'needs PyAV, and it is not installed. pip install "gemworks\[video\]"'):
        read_frames(clip)


def test_frames_are_pictures_for_the_model(clip):
    """What reads images takes them as they are."""
    from gemworks.media import prepare_picture

    [frame] = read_frames(clip, max_frames=1)
    assert isinstance(frame.image, Image.Image)
    assert prepare_picture(frame.image, tile_size=28).tiles[0].shape == (28, 28, 3)


# -- memory ----------------------------------------------------------------------------------------------------------

GROWTH = """
import sys
from pathlib import Path
from gemworks.media import read_frames

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

read_frames(Path(sys.argv[1]).read_bytes(), max_frames=1)  # libraries are loaded before memory is measured
before = peak()
for sampling in ("uniform", "scenes"):
    assert len(read_frames(sys.argv[2], max_frames=2, sampling=sampling)) == 2
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by /proc")
def test_frames_that_are_not_chosen_are_not_kept(tmp_path, clip):
    """Sixty frames of 1080p are 373 MB; two of them and what the decoder holds are 60 MB."""
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    small.write_bytes(clip)
    shots = (videos.flat(50 if i < 30 else 200, (1920, 1080)) for i in range(60))
    large.write_bytes(videos.encode(shots, codec_options={"preset": "ultrafast", "threads": "1"}))
    done = subprocess.run([sys.executable, "-c", GROWTH, small, large], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150_000_000, f"{int(done.stdout):,} bytes"
