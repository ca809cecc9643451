"""The one decoder: what it reads, what it refuses, and that it never decodes what it refuses."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perennial.errors import (
    EmptyImage,
    InvalidImage,
    TooManyBytes,
    TooManyPixels,
    TruncatedImage,
    UnsupportedImageFormat,
)
from perennial.images import ImageLimits, InputRule, prepare, read_header

RULE = InputRule(resize=32, crop=32)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 80, height: int = 60) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_promised_format_is_read(format: str) -> None:
    prepared = prepare(encoded(gradient(), format), RULE)
    assert prepared.pixels.shape == (32, 32, 3)
    assert prepared.pixels.dtype == np.uint8
    assert prepared.header.format == format
    assert (prepared.header.width, prepared.header.height) == (80, 60)
    # Red grows to the right in all of them.
    assert prepared.pixels[:, -4:, 0].mean() > prepared.pixels[:, :4, 0].mean() + 100


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        ramp = np.tile(np.linspace(0, 65_535, 64).astype(np.uint16), (48, 1))
        image = Image.fromarray(ramp)
    elif mode == "I":
        image = Image.fromarray(np.tile(np.linspace(0, 65_535, 64).astype(np.int32), (48, 1)))
    else:
        image = gradient(64, 48).convert(mode)
    format = "TIFF" if mode in ("F", "I") else "PNG"
    prepared = prepare(encoded(image, format), RULE)
    assert prepared.pixels.shape == (32, 32, 3)
    assert prepared.header.mode == mode
    assert prepared.pixels[:, -3:].mean() > prepared.pixels[:, :3].mean() + 20


def test_cmyk_jpeg_keeps_its_colours() -> None:
    red = Image.new("RGB", (64, 64), (220, 30, 30)).convert("CMYK")
    pixels = prepare(encoded(red, "JPEG", quality=95), RULE).pixels
    assert pixels[..., 0].mean() > 180
    assert pixels[..., 1].mean() < 80


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    half = Image.fromarray(np.full((40, 40), 32_768, dtype=np.uint16))
    assert abs(float(prepare(encoded(half), RULE).pixels.mean()) - 128) <= 1


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert prepare(encoded(clear), RULE).pixels.min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = gradient(80, 60)
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    header = read_header(data)
    assert (header.width, header.height) == (80, 60)
    difference = prepare(data, RULE).pixels.astype(int) - prepare(encoded(upright), RULE).pixels.astype(int)
    assert np.abs(difference).max() <= 3


def test_a_broken_exif_block_does_not_spoil_good_pixels() -> None:
    data = encoded(gradient(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert prepare(data, RULE).pixels.shape == (32, 32, 3)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert prepare(data, RULE).pixels[0, 0, 0] > 200


def test_the_rule_is_torchvisions_resize_and_centre_crop() -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    rule = InputRule(resize=48, crop=40)
    image = gradient(123, 77)
    theirs = transforms.Compose([transforms.Resize(48, antialias=True), transforms.CenterCrop(40)])(image)
    ours = prepare(encoded(image), rule).pixels
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 2


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    data = encoded(gradient(3000, 2000), "JPEG", quality=92)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((48, 32), Image.Resampling.BILINEAR)
    ours = prepare(data, RULE).pixels.astype(int)
    assert np.abs(ours - np.asarray(full)[:, 8:40].astype(int)).mean() < 2


def test_no_bytes_is_said_to_be_no_bytes() -> None:
    with pytest.raises(EmptyImage, match="no bytes"):
        prepare(b"", RULE)


def test_a_text_file_is_not_an_image() -> None:
    with pytest.raises(InvalidImage, match="not an image") as caught:
        prepare(b"hello, I am a text file\n" * 10, RULE)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(50), "HEIC"),
        (b"%PDF-1.7\n" + bytes(50), "PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    ],
)
def test_another_image_type_is_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImageFormat, match=name) as caught:
        prepare(data, RULE)
    assert caught.value.status == 415


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_truncated_image_is_an_error_never_a_crash(format: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8))
    data = encoded(noise, format)
    with pytest.raises(InvalidImage) as caught:
        prepare(data[: int(len(data) * share)], RULE)
    assert caught.value.status == 400


def test_a_truncated_jpeg_is_called_truncated() -> None:
    data = encoded(gradient(200, 200), "JPEG")
    with pytest.raises(TruncatedImage, match="send the whole file"):
        prepare(data[: len(data) // 2], RULE)


def test_a_wrong_name_does_not_matter_only_the_bytes_do() -> None:
    # Nobody passes a file name: a PNG called photo.jpg is a PNG.
    assert read_header(encoded(gradient(), "PNG")).format == "PNG"


def test_too_many_bytes_are_refused_before_anything_else() -> None:
    with pytest.raises(TooManyBytes) as caught:
        prepare(bytes(2_000_001), RULE, ImageLimits(max_bytes=2_000_000))
    assert caught.value.status == 413


def test_a_two_hundred_megapixel_header_is_refused_without_decoding() -> None:
    data = png_header(20_000, 10_000) + struct.pack(">I", 1000) + b"IDAT" + bytes(1000)
    tracemalloc.start()
    try:
        with pytest.raises(TooManyPixels, match="200,000,000 pixels"):
            prepare(data, RULE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    bomb = encoded(Image.new("1", (12_000, 12_000)), "PNG")
    assert len(bomb) < 50_000
    with pytest.raises(TooManyPixels):
        prepare(bomb, RULE)


def test_a_one_pixel_strip_is_prepared() -> None:
    assert prepare(encoded(Image.new("RGB", (1, 4000), "white")), RULE).pixels.shape == (32, 32, 3)


def test_mutated_images_never_raise_anything_but_ours() -> None:
    random = np.random.default_rng(7)
    originals = [encoded(gradient(), format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    outcomes = {"read": 0, "refused": 0}
    for number in range(600):
        data = bytearray(originals[number % len(originals)])
        for position in random.integers(0, len(data), size=random.integers(1, 30)):
            data[position] = random.integers(0, 256)
        try:
            prepare(bytes(data), RULE)
            outcomes["read"] += 1
        except InvalidImage:
            outcomes["refused"] += 1
    assert sum(outcomes.values()) == 600
    assert min(outcomes.values()) > 20


def test_jpeg_and_png_of_one_photo_agree(tmp_path: Path) -> None:
    photo = gradient(320, 240)
    jpeg = prepare(encoded(photo, "JPEG", quality=95), RULE).pixels.astype(int)
    png = prepare(encoded(photo, "PNG"), RULE).pixels.astype(int)
    assert np.abs(jpeg - png).mean() < 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16", "P"])
def test_a_large_image_is_converted_in_tiles_to_the_same_pixels(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65_536, (70, 90), dtype=np.uint16))
    else:
        image = Image.fromarray(random.integers(0, 256, (70, 90, 4), dtype=np.uint8)).convert(mode)
    data = encoded(image, "PNG", **({"transparency": 3} if mode == "P" else {}))
    whole = prepare(data, RULE).pixels
    for pixels in (50, 90, 1000):
        monkeypatch.setattr("perennial.images._TILE_PIXELS", pixels)
        assert np.array_equal(prepare(data, RULE).pixels, whole)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"icc_profile": bytes(5_000_000)}])
def test_a_photo_with_much_behind_it_or_in_its_header_is_read(options: dict[str, object]) -> None:
    # Phones append a film to a photo; what looks like a scan in there is none.
    film = np.random.default_rng(2).integers(0, 256, 5_000_000, dtype=np.uint8).tobytes() + b"\xff\xda" * 1000
    assert prepare(encoded(gradient(), "JPEG", **options) + film, RULE).header.format == "JPEG"
