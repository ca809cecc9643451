"""Five thousand broken images, and small files that would be large or slow: the worker answers each and lives on."""

from __future__ import annotations

import http.client
import io
import json
import random
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from tests.service.conftest import Server, make_world, picture, serving

IMAGES = 5000
CONNECTIONS = 4
THREADS = 2
MAX_PIXELS = 8_000_000
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L", "P", "1"),
    "TIFF": ("RGB", "RGBA", "L", "LA", "CMYK", "1", "F", "I", "I;16"),
}
#: Turned by 90 degrees.
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
OPTIONS: dict[str, list[dict[str, object]]] = {
    "JPEG": [
        {},
        {"progressive": True},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ],
    "PNG": [{}, {"icc_profile": bytes(200)}],
    "WEBP": [{}, {"lossless": True}],
    "TIFF": [{}, {"compression": "tiff_adobe_deflate"}, {"compression": "tiff_lzw"}, {"compression": "packbits"}],
}
#: What a worker holds at the most: itself, and for each thread twenty bytes a pixel of an image that is just small
#: enough (a WebP, of which Pillow and libwebp hold five copies), whatever the file's own size.
MOST_RESIDENT = 400_000_000 + THREADS * 20 * MAX_PIXELS


def originals() -> list[bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    base = Image.fromarray((noise // 4 + np.linspace(0, 180, 64, dtype=np.uint8)[:, None]).astype(np.uint8))
    made = []
    for form, modes in MODES.items():
        for mode in modes:
            if mode == "I;16":
                image = Image.fromarray(np.asarray(base.convert("L"), dtype=np.uint16) * 200)
            else:
                image = base.convert(mode)
            for options in OPTIONS.get(form, [{}]):
                buffer = io.BytesIO()
                try:
                    image.save(buffer, form, **options)
                except (OSError, ValueError):  # a compression that the mode has not
                    continue
                made.append(buffer.getvalue())
    return made


def mutated(chance: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4))):
        kind = chance.randrange(8)
        at = chance.randrange(len(data)) if data else 0
        if kind == 0:  # bits
            for _ in range(chance.randrange(1, 20)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:  # bytes, near the front, where the structure is
            for _ in range(chance.randrange(1, 10)):
                data[min(int(chance.expovariate(1 / 60)), len(data) - 1)] = chance.randrange(256)
        elif kind == 2:
            del data[max(1, at) :]
        elif kind == 3:  # a length or a dimension
            width = chance.choice((2, 4))
            value = chance.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)) % 2 ** (8 * width)
            at = min(int(chance.expovariate(1 / 40)), max(0, len(data) - width))
            data[at : at + width] = value.to_bytes(width, chance.choice(("big", "little")))
        elif kind == 4:  # a piece of another image
            other = chance.choice(seeds)
            start = chance.randrange(len(other))
            data[at:at] = other[start : start + chance.randrange(1, 400)]
        elif kind == 5:  # a piece twice, or many times
            data[at:at] = data[at : at + chance.randrange(1, 60)] * chance.choice((1, 3, 50))
        elif kind == 6:
            del data[at : at + chance.randrange(1, 60)]
        else:
            data += bytes(chance.randrange(1, 3000))
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


class Watch:
    """The most memory the server's processes have held, sampled while it works."""

    def __init__(self, server: Server) -> None:
        self.worker = max(server.children(), key=lambda process: process.memory_info().rss)
        self.most = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._ending.wait(0.01):
            self.most = max(self.most, self.worker.memory_info().rss)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    world = make_world(tmp_path_factory.mktemp("hostile") / "home")
    world.publish_live()
    extra = {
        "PERENNIAL_SERVE__MAX_PIXELS": str(MAX_PIXELS),
        "PERENNIAL_SERVE__THREADS": str(THREADS),
        "PERENNIAL_SERVE__CAPTURE": "0",
    }
    with serving(world, extra=extra) as server:
        yield server


def alive(server: Server, watch: Watch) -> None:
    assert watch.worker.is_running()
    assert watch.worker.pid in {child.pid for child in server.children()}
    assert server.predict(picture("red"))["label"] == "red"
    assert watch.most < MOST_RESIDENT, f"{watch.most:,} bytes resident"
    assert "Traceback" not in server.output()


def test_five_thousand_mutated_images_are_each_answered(target: Server) -> None:
    chance = random.Random(20261121)
    seeds = originals()
    images = [mutated(chance, seeds) for _ in range(IMAGES)]
    host, port = target.url.removeprefix("http://").split(":")

    def send(share: list[bytes]) -> Counter[int]:
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        statuses: Counter[int] = Counter()
        for image in share:
            connection.request("POST", "/v1/predict", image)
            answer = connection.getresponse()
            document = json.loads(answer.read())
            statuses[answer.status] += 1
            if answer.status != 200:
                assert answer.getheader("content-type") == "application/problem+json"
                assert document["status"] == answer.status
                assert document["type"].startswith("urn:perennial:problem:")
        connection.close()
        return statuses

    with Watch(target) as watch, ThreadPoolExecutor(CONNECTIONS) as pool:
        statuses = sum(pool.map(send, [images[start::CONNECTIONS] for start in range(CONNECTIONS)]), Counter())
    assert statuses.total() == IMAGES
    assert set(statuses) <= {200, 400, 413, 415}, statuses
    assert min(statuses[200], statuses[400]) > 1000, statuses
    assert statuses[413] > 10, statuses
    alive(target, watch)


# --- small files that would be large or slow -------------------------------------------------------------


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


SMALL = Image.new("RGB", (64, 64), "red")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(more: bytes) -> bytes:
    png = encoded(SMALL, "PNG")
    return png[:33] + more + png[33:]


def png_bomb() -> bytes:
    return encoded(Image.new("L", (12_000, 12_000)), "PNG")


def webp_bomb() -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + struct.pack("<I", 16_382)[:3] * 2 + bytes(64)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def after_palette(gif: bytes | bytearray) -> int:
    """Where the first frame of a GIF of Pillow's begins, its blocks before it included."""
    return 13 + 3 * 2 ** ((gif[10] & 7) + 1)


def gif_bomb() -> bytes:
    data = bytearray(encoded(Image.new("L", (10, 10)), "GIF"))
    data[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def gif_frame_bomb() -> bytes:
    """The screen is small, its first frame is not."""
    data = bytearray(encoded(Image.new("L", (10, 10)), "GIF"))
    at = after_palette(data)
    data[at + 5 : at + 9] = struct.pack("<HH", 65_535, 65_535)
    return bytes(data)


def tiff_bomb() -> bytes:
    return encoded(Image.new("1", (30_000, 30_000)), "TIFF", compression="group4")


def bmp_bomb() -> bytes:
    data = bytearray(encoded(SMALL, "BMP"))
    data[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(data)


def jpeg_bomb() -> bytes:
    data = bytearray(encoded(SMALL, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@pytest.mark.parametrize(
    "make",
    [png_bomb, webp_bomb, gif_bomb, gif_frame_bomb, tiff_bomb, bmp_bomb, jpeg_bomb],
    ids=lambda make: make.__name__,
)
def test_a_decompression_bomb_is_refused_before_it_is_decoded(target: Server, make: Callable[[], bytes]) -> None:
    data = make()
    assert len(data) < 200_000
    with Watch(target) as watch:
        before = watch.worker.memory_info().rss
        began = time.perf_counter()
        answer = target.post("/v1/predict", data)
        took = time.perf_counter() - began
    assert (answer.status_code, answer.json()["type"].rsplit(":", 1)[1]) == (413, "too-many-pixels")
    assert took < 0.5
    assert watch.most - before < 20_000_000
    alive(target, watch)


def jpeg_of_many_scans() -> bytes:
    """libjpeg goes over all pixels for each scan: 2,000 of them, in 350 kB, took Pillow more than forty seconds."""
    data = encoded(Image.new("L", (2800, 2800), 128), "JPEG", progressive=True, quality=20)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 20_000 + data[-2:]


def jpeg_of_many_segments() -> bytes:
    data = encoded(SMALL, "JPEG")
    return data[:2] + b"\xff\xe3\0\2" * 2_000_000 + data[2:]


def jpeg_of_fill_bytes() -> bytes:
    data = encoded(SMALL, "JPEG")
    return data[:2] + b"\xff" * 8_000_000 + data[2:]


def jpeg_of_much_exif() -> bytes:
    data = encoded(SMALL, "JPEG")
    block = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000)
    block += b"".join(struct.pack(">HHII", tag, 7, 60_000, 8) for tag in range(5000))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[20:]


def png_of_many_chunks() -> bytes:
    return png_with(chunk(b"teSt", b"") * 700_000)


def png_of_much_text() -> bytes:
    return png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9)) * 300)


def png_with_a_profile_that_swells() -> bytes:
    return png_with(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**28), 9)))


def png_whose_exif_points_at_itself() -> bytes:
    tags = b"".join(struct.pack(">HHII", tag, 7, 60_000, 8) for tag in range(20_000))
    return png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08" + struct.pack(">H", 20_000) + tags))


def tiff_of_many_tags() -> bytes:
    tags = b"".join(struct.pack(">HHII", tag, 7, 700_000, 8) for tag in range(60_000))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", 60_000) + tags + bytes(4)


def bigtiff_of_many_tags() -> bytes:
    tags = b"".join(struct.pack("<HHQ8s", tag % 65_536, 7, 8, b"12345678") for tag in range(200_000))
    return b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 200_000) + tags + bytes(8)


def gif_of_many_comments() -> bytes:
    data = encoded(Image.new("L", (10, 10)), "GIF")
    at = after_palette(data)
    return data[:at] + b"\x21\xfe\x01x\x00" * 1_500_000 + data[at:]


def webp_of_many_frames() -> bytes:
    frames = [Image.new("RGB", (1000, 1000), (shade, 0, 0)) for shade in range(100)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0)


@pytest.mark.parametrize(
    "make",
    [
        jpeg_of_many_scans, jpeg_of_many_segments, jpeg_of_fill_bytes, jpeg_of_much_exif, png_of_many_chunks,
        png_of_much_text, png_with_a_profile_that_swells, png_whose_exif_points_at_itself, tiff_of_many_tags,
        bigtiff_of_many_tags, gif_of_many_comments, webp_of_many_frames,
    ],
    ids=lambda make: make.__name__,
)  # fmt: skip
def test_a_file_that_would_take_long_or_much_memory_takes_neither(target: Server, make: Callable[[], bytes]) -> None:
    data = make()
    with Watch(target) as watch:
        before = watch.worker.memory_info().rss
        began = time.perf_counter()
        answer = target.post("/v1/predict", data)
        took = time.perf_counter() - began
    assert answer.status_code in (200, 400), answer.text
    assert took < 2.0
    assert watch.most - before < 100_000_000
    alive(target, watch)


@pytest.mark.parametrize(
    ("form", "mode"), [("PNG", "RGBA"), ("PNG", "I;16"), ("PNG", "P"), ("WEBP", "RGB"), ("TIFF", "F"), ("GIF", "P")]
)
def test_the_largest_image_that_is_allowed_stays_within_the_bound(target: Server, form: str, mode: str) -> None:
    side = int(MAX_PIXELS**0.5)
    if mode == "I;16":
        image = Image.fromarray(np.zeros((side, side), dtype=np.uint16))
    else:
        image = Image.new(mode, (side, side))
    options = {"compression": "tiff_adobe_deflate"} if form == "TIFF" else {}
    options |= {"transparency": 0} if mode == "P" and form == "PNG" else {}
    data = encoded(image, form, **options)
    assert len(data) < 1_000_000
    with Watch(target) as watch, ThreadPoolExecutor(THREADS) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: target.post("/v1/predict", data), range(4))} == {
            200
        }
    alive(target, watch)
