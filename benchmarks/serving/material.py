"""What every stack is given: one trained bundle, and photos of two sizes as JPEG files.

The photos are real ones (ants and bees, from `PERENNIAL_TEST_DATA`) where that folder is there, else made here; the
network is trained on photos of steel from there, which it learns well enough that bfloat16 can be certified. A small
photo is brought to about 53 KB, what a phone's messenger sends; a large one to about 3 MB, what a 12-megapixel camera
writes. An enlarged photo has no grain, and without grain a large JPEG would be far too small and too quick to decode;
so it gets some.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from perennial.bundle import Bundle, open_bundle, upload_bundle
from perennial.graph import Graph
from perennial.images import prepare as prepare_image
from perennial.ledger import deployments, models, open_ledger
from perennial.settings import load_settings
from perennial.settings_sections import ServeSettings
from perennial.storage import Storage
from service.precision import choose

TEST_DATA: Final = Path(os.environ.get("PERENNIAL_TEST_DATA", "../shared/data"))
NAME: Final = "bench"
SIDE: Final = 224
ONNX: Final = "classifier.onnx"  # the bundle's graph for the peers
SIZES: Final = {"640x480": (640, 480), "4000x3000": (4000, 3000)}
_BYTES: Final = {"640x480": 53_000, "4000x3000": 3_000_000}
_COUNT: Final = {"640x480": 16, "4000x3000": 4}
_PHOTOS, _LESSONS = "hymenoptera", "neu_surface_defects"  # folders of the test data
_GRAIN: Final = 5.0  # grey levels
_BOUNDARY: Final = "perennial-benchmark-boundary"


@dataclass(frozen=True)
class Bodies:
    """Request bodies in files, one a line of the file `listing`."""

    listing: Path
    content_type: str

    def read(self) -> list[bytes]:
        return [Path(line).read_bytes() for line in self.listing.read_text("utf-8").splitlines()]


@dataclass(frozen=True)
class Material:
    """`photos` says where they came from, `weights` what the network began from."""

    folder: Path
    bundle: Bundle
    photos: str
    weights: str

    def bodies(self, image: str, field: str = "") -> Bodies:
        """The photos of a size as request bodies: raw, or as the multipart field of that name."""
        files = sorted((self.folder / image).glob("*.jpg"))
        if field:
            files = [_multipart(path, field) for path in files]
        listing = self.folder / f"{image}-{field or 'raw'}.txt"
        listing.write_text("".join(f"{path}\n" for path in files), "utf-8")
        return Bodies(listing, f"multipart/form-data; boundary={_BOUNDARY}" if field else "image/jpeg")

    def labels(self, image: str) -> list[str]:
        """What the network says of each photo of a size, in float32 and in order."""
        graph, manifest = Graph(self.bundle.graph, threads=1), self.bundle.manifest
        pixels = [prepare_image(photo, manifest.input).pixels for photo in self.bodies(image).read()]
        return [manifest.classes[graph.run(each[np.newaxis]).probabilities[0].argmax()] for each in pixels]

    def computes(self) -> str:
        """The precision and runtime that the service comes to by itself on this machine."""
        runtime, precision = choose(self.bundle.manifest, ServeSettings())
        return f"{precision} on {runtime}"


def prepare(folder: Path, images: Sequence[str], weights: str) -> Material:
    """Photos and a trained bundle in `folder`; what is there already is used again."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = "real" if all((TEST_DATA / name).is_dir() for name in (_PHOTOS, _LESSONS)) else "made"
    for image in images:
        if not (folder / image).is_dir():
            print(f"photos of {image} ({photos})", flush=True)
            _write_photos(folder, image, photos)
    home, record = folder / "home", folder / "trained.json"
    trained = json.loads(record.read_text("utf-8")) if record.exists() else None
    if trained is None or trained["weights"]["source"] != weights:
        print(f"training the bundle on {photos} photos, weights {weights}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        (folder / ONNX).unlink(missing_ok=True)
        record.write_text(_train(home, _training_data(folder, photos), weights), "utf-8")
        trained = json.loads(record.read_text("utf-8"))
    return Material(folder, open_bundle(Path(trained["bundle"])), photos, weights)


def open_home(home: Path, bundle: Bundle) -> None:
    """Make `home` an empty Perennial home in which `bundle` is live."""
    settings = load_settings(home=home, name=NAME)
    home.mkdir(parents=True, exist_ok=True)
    engine = open_ledger(settings.ledger_url)
    try:
        models.register(engine, bundle, upload_bundle(bundle, Storage(settings.blobs_url)))
        deployments.deploy(engine, NAME, bundle.manifest.version, reason="the benchmark", actor="benchmark")
    finally:
        engine.dispose()


def environment(home: Path) -> dict[str, str]:
    """This process's own, without settings of the user's that would change what is measured."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PERENNIAL_", "BENTOML_"))}
    root = Path(__file__).parents[2]
    return {
        **kept,
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_NAME": NAME,
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), kept.get("PYTHONPATH")])),
    }


def _train(home: Path, data: Path, weights: str) -> str:
    # In a folder of its own, so that no perennial.toml of the user's is read.
    home.mkdir(parents=True)
    done = subprocess.run(
        [
            sys.executable, "-m", "commands.main", "train", str(data), "--json", "--name", NAME,
            "--backbone", "mobilenet_v3_small", "--weights", weights, "--image-size", str(SIDE),
        ],
        env=environment(home), cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"training failed:\n{done.stderr}")
    return done.stdout


def _training_data(folder: Path, photos: str) -> Path:
    if photos == "real":
        return (TEST_DATA / _LESSONS).absolute()
    data = folder / "training"
    for number, photo in zip(range(80), _made(), strict=False):
        path = data / ("light", "dark")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.point([level // (1 + number % 2) for level in range(256)] * 3).resize((320, 240)).save(path)
    return data


def _write_photos(folder: Path, image: str, photos: str) -> None:
    size, staging = SIZES[image], folder / f".{image}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()

    def write(numbered: tuple[int, Image.Image]) -> None:
        number, photo = numbered
        large = ImageOps.fit(photo, size, Image.Resampling.BICUBIC)
        if size[0] > photo.width * 2:
            large = _grained(large, number)
        (staging / f"{number:02}.jpg").write_bytes(jpeg_of(large, _BYTES[image]))

    chosen = zip(range(_COUNT[image]), _real() if photos == "real" else _made(), strict=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, chosen))
    staging.rename(folder / image)


def jpeg_of(image: Image.Image, size: int) -> bytes:
    """The JPEG at the quality that comes nearest to `size` bytes."""
    low, high = 10, 97
    best = b""
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if not best or abs(len(data) - size) < abs(len(best) - size):
            best = data
        if len(data) < size:
            low = quality + 1
        else:
            high = quality - 1
    return best


def _real() -> Iterator[Image.Image]:
    paths = sorted((TEST_DATA / _PHOTOS / "train").glob("*/*.jpg"))
    for path in paths[:: max(1, len(paths) // max(_COUNT.values()))]:
        with Image.open(path) as photo:
            yield photo.convert("RGB")


def _made() -> Iterator[Image.Image]:
    """Noise of all scales, falling off with frequency as in photos; without end, each different."""
    random = np.random.default_rng(0)
    while True:
        picture = np.zeros((480, 640, 3))
        for scale in (160, 80, 40, 20, 10, 5, 2, 1):
            spots = random.normal(size=(-(-480 // scale), -(-640 // scale), 3)) * scale**0.75
            picture += np.kron(spots, np.ones((scale, scale, 1)))[:480, :640]
        levels = 128 + 48 * (picture - picture.mean()) / picture.std()
        yield Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _grained(image: Image.Image, seed: int) -> Image.Image:
    width, height = image.size
    grain = np.random.default_rng(seed).normal(0.0, _GRAIN, (height, width, 1)).astype(np.int16)
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))


def _multipart(path: Path, field: str) -> Path:
    wrapped = path.parent / f"{path.stem}-{field}.multipart"
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{path.name}"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    wrapped.write_bytes(head.encode() + path.read_bytes() + f"\r\n--{_BOUNDARY}--\r\n".encode())
    return wrapped
