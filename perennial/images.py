"""Bytes of an image -> upright RGB pixels, safely: the one decoder for training and serving.

Limits are checked on the header before anything is decoded. Large JPEGs are decoded at 1/2, 1/4 or 1/8 of
their size (scaled inverse DCT) when the network needs no more.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from perennial.errors import (
    EmptyImage,
    InvalidImage,
    TooManyBytes,
    TooManyPixels,
    TruncatedImage,
    UnsupportedImageFormat,
)

Pixels = NDArray[np.uint8]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Pillow only warns about huge images; the limits below refuse them.
Image.MAX_IMAGE_PIXELS = None
# It also warns about odd metadata; a client must not be able to fill the log with that.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_ORIENTATION_TAG: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What a small file could keep a processor busy with for minutes: Pillow reads each of these in Python, and libjpeg goes
# over all pixels again for each scan. Cameras and encoders stay far below.
_MAX_SEGMENTS: Final = 500  # JPEG; a colour profile has at most 255
_MAX_SCANS: Final = 40  # JPEG
_MAX_CHUNKS: Final = 20_000  # PNG
_MAX_TAGS: Final = 2_000  # TIFF
_MAX_BLOCKS: Final = 10_000  # GIF, before the first frame; Pillow keeps each block of a comment as an object
# Any marker but a stuffed byte, a fill byte or a restart.
_JPEG_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_ONE_SCAN: Final = (0xC0, 0xC1)  # sequential: unless its components come one by one, there is a single scan
_TILE_PIXELS: Final = 2**20
# Types people do send, named so that the error can say what it got.
_FOREIGN_SIGNATURES: Final = (
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypavif", "AVIF"),
    (0, b"%PDF", "PDF"),
    (0, b"<svg", "SVG"),
    (0, b"8BPS", "PSD"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
)


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The most an image may be: `max_bytes` as sent, `max_pixels` (width x height) by its header."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What the header says. `width` and `height` in pixels, upright (after EXIF orientation)."""

    format: str
    mode: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class InputRule:
    """How an image becomes the network's input: the short side resized to `resize`, then the central
    `crop` x `crop` square. Both in pixels."""

    resize: int
    crop: int


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """`pixels`: uint8 [crop, crop, 3], RGB, upright."""

    pixels: Pixels
    header: ImageHeader


def read_header(data: bytes, limits: ImageLimits = ImageLimits()) -> ImageHeader:
    """Format, mode and upright size, without decoding.

    Raises:
        EmptyImage, TooManyBytes, TooManyPixels, UnsupportedImageFormat, InvalidImage: see `perennial.errors`.
    """
    image = _open(data, limits)
    return _header(image)


def prepare(
    data: bytes,
    rule: InputRule,
    limits: ImageLimits = ImageLimits(),
) -> PreparedImage:
    """Decode an image and bring it to the network's input size.

    Args:
        data: JPEG, PNG, WebP, GIF (first frame), BMP or TIFF, in any mode Pillow reads. Transparency is laid on
            white; 16-bit grey keeps its upper 8 bits.
        rule: the bundle's resize and crop.
        limits: checked before decoding.

    Raises:
        EmptyImage, TooManyBytes, TooManyPixels, UnsupportedImageFormat, TruncatedImage, InvalidImage.
    """
    opened = _open(data, limits)
    header = _header(opened)
    turn = _TURNS.get(_orientation(opened))
    try:
        opened.draft(None, (rule.resize, rule.resize))  # acts on JPEG only; never goes below this size
        opened.decodermaxblock = len(data)  # decoded in one go: in Pillow's 64 KiB a large JPEG takes 2 % longer
        opened.load()
        image = _to_rgb(opened)
        if turn is not None:
            image = image.transpose(turn)
        image = _fit(image, rule)
    except InvalidImage:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on corrupt bytes, none of them ours
        raise TruncatedImage(
            f"the {header.format} header is fine but the image data is not ({error}); send the whole file"
        ) from error
    return PreparedImage(np.asarray(image), header)


def _open(data: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    if not data:
        raise EmptyImage("there are no bytes; send the image as the request body or in the field `image`")
    if len(data) > limits.max_bytes:
        raise TooManyBytes(f"{len(data):,} bytes; at most {limits.max_bytes:,} are accepted")
    try:
        _refuse_costly(data, limits)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
    except InvalidImage:
        raise
    except UnidentifiedImageError:
        foreign = next((name for at, sign, name in _FOREIGN_SIGNATURES if data.startswith(sign, at)), None)
        if foreign:
            raise UnsupportedImageFormat(f"{foreign} is not read here; send {', '.join(FORMATS)}") from None
        raise InvalidImage(f"these {len(data):,} bytes are not an image; send {', '.join(FORMATS)}") from None
    except Exception as error:  # a broken header raises anything from struct.error to OverflowError
        raise InvalidImage(f"the image header cannot be read ({error}); send the whole file") from error
    _refuse_large(width, height, limits)
    if width < 1 or height < 1:
        raise InvalidImage(f"the header says {width} x {height} pixels")
    return image


def _refuse_large(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise TooManyPixels(
            f"{width} x {height} is {width * height:,} pixels; at most {limits.max_pixels:,} are accepted"
        )


def _refuse_costly(data: bytes, limits: ImageLimits) -> None:
    """Look at the bytes themselves for what would already cost too much to open."""
    if data.startswith(b"\xff\xd8"):
        _refuse_many_scans(data)
    elif data.startswith(b"\x89PNG"):
        _refuse_many_chunks(data)
    elif data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        # Pillow allocates the canvas when it opens the file.
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        _refuse_large(width, height, limits)
    elif data.startswith(b"GIF8"):
        _refuse_many_blocks(data)
    elif data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        _refuse_many_tags(data)


def _refuse_many_scans(data: bytes) -> None:
    position, segments, scans, single = 2, 0, 0, False
    while scans <= _MAX_SCANS:
        found = _JPEG_MARKER.search(data, position)
        if found is None or found[1] == b"\xd9":
            return
        # Fill bytes count too: Pillow reads them one by one. After the first scan what lies between is picture.
        segments += 1 + ((found.start() - position) // 16 if scans == 0 else 0)
        if segments > _MAX_SEGMENTS:
            raise InvalidImage(f"more than {_MAX_SEGMENTS:,} JPEG segments; save the image anew")
        marker, at = found[1][0], found.end()
        if marker in (0x01, 0xD8):
            position = at
            continue
        if marker in _ONE_SCAN and at + 7 < len(data):
            single, components = True, data[at + 7]
        if marker == 0xDA:
            if single and at + 2 < len(data) and data[at + 2] == components:
                return
            scans += 1
        position = at + int.from_bytes(data[at : at + 2], "big")
    raise InvalidImage(f"more than {_MAX_SCANS} JPEG scans; save the image anew")


def _refuse_many_chunks(data: bytes) -> None:
    position = 8
    for _ in range(_MAX_CHUNKS):
        if position >= len(data):
            return
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    raise InvalidImage(f"more than {_MAX_CHUNKS:,} PNG chunks; save the image anew")


def _refuse_many_blocks(data: bytes) -> None:
    palette = 3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0
    position, inside = 13 + palette, False
    for _ in range(_MAX_BLOCKS):
        if position >= len(data) or (not inside and data[position] in b",;"):
            return
        if inside:
            inside = data[position] != 0
            position += 1 + data[position]
        else:
            inside = data[position] == 0x21  # an extension: its label, then its blocks up to an empty one
            position += 2 if inside else 1
    raise InvalidImage(f"more than {_MAX_BLOCKS:,} GIF blocks before the first frame; save the image anew")


def _refuse_many_tags(data: bytes) -> None:
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
    # In BigTIFF (43 instead of 42) offsets and counts have eight bytes.
    at, width, count_width = (8, 8, 8) if b"+" in data[2:4] else (4, 4, 2)
    first = int.from_bytes(data[at : at + width], order)
    if int.from_bytes(data[first : first + count_width], order) > _MAX_TAGS:
        raise InvalidImage(f"more than {_MAX_TAGS:,} TIFF tags; save the image anew")


def _header(image: Image.Image) -> ImageHeader:
    width, height = image.size
    if _orientation(image) >= 5:
        width, height = height, width
    return ImageHeader(image.format or "", image.mode, width, height)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - a broken EXIF block is no reason to refuse good pixels; upright is its default
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if not (image.mode.startswith("I") or _is_transparent(image)):
        return image.convert("RGB")
    # Tile by tile: each of the steps below makes a copy, which of a large image would be a gigabyte.
    whole = Image.new("RGB", image.size)
    columns = min(image.width, _TILE_PIXELS)
    rows = max(1, _TILE_PIXELS // columns)
    for top in range(0, image.height, rows):
        for left in range(0, image.width, columns):
            tile = image.crop((left, top, min(left + columns, image.width), min(top + rows, image.height)))
            whole.paste(_tile_to_rgb(tile), (left, top))
    return whole


def _tile_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65_535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _fit(image: Image.Image, rule: InputRule) -> Image.Image:
    # torchvision's Resize and CenterCrop, to the pixel.
    width, height = image.size
    if width <= height:
        size = (rule.resize, max(1, int(rule.resize * height / width)))
    else:
        size = (max(1, int(rule.resize * width / height)), rule.resize)
    left = round((size[0] - rule.crop) / 2.0)
    top = round((size[1] - rule.crop) / 2.0)
    # Resizing only what the crop keeps bounds the work for a strip of 1 x 50,000,000 pixels.
    scale_x, scale_y = width / size[0], height / size[1]
    box = (left * scale_x, top * scale_y, (left + rule.crop) * scale_x, (top + rule.crop) * scale_y)
    box = (max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3]))
    return image.resize((rule.crop, rule.crop), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
