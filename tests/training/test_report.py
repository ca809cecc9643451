from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perennial.bundle import (
    Arrival,
    Certificate,
    CurvePoint,
    Dataset,
    Estimate,
    Finding,
    Ladder,
    Manifest,
    Pretrained,
    Rung,
    Signals,
    Transfer,
)
from perennial.graph import GraphOutput
from perennial.images import ImageLimits, InputRule
from perennial.storage import sha256_of_file
from training import evaluate
from training.datasets import LabelledImages, Row, Skipped
from training.label_errors import LabelError
from training.report import render
from training.report.thumbnails import SIDE, thumbnail

_VOID = {"meta", "br", "img", "input", "hr", "link"}


class Checked(HTMLParser):
    """Notes every tag, attribute and text, and fails on tags that are not closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def estimate(value: float, half: float = 0.03) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def ladder(**changes: object) -> Ladder:
    curve = tuple(CurvePoint(epoch=at, seconds=2.0 * at, accuracy=0.5 + 0.04 * at) for at in range(1, 9))
    transfer = Transfer(
        verdict="positive",
        simple_suffices=False,
        says=("The frozen features alone are right on 95.5 %.",),
        alone=estimate(0.955),
        alone_random=estimate(0.58),
        to_accuracy=0.8,
        arrival=Arrival(epochs=1, seconds=4.2),
        arrival_from_scratch=Arrival(epochs=None, seconds=None),
        final=estimate(0.96),
        final_from_scratch=estimate(0.82),
    )
    rungs = (
        Rung(name="majority", tried=True, accuracy=estimate(0.5)),
        Rung(name="simple", tried=True, accuracy=estimate(0.63), seconds=0.4, parameters=4610, milliseconds=0.6),
        Rung(name="linear_probe", tried=True, accuracy=estimate(0.95), difference=estimate(0.0), seconds=4.2),
        Rung(name="full", tried=False, why="expected to add 0.2 points, past the budget", seconds=140),
        Rung(name="scratch", tried=True, accuracy=estimate(0.82), seconds=16, epochs=8, curve=curve),
    )
    plain = Ladder(
        chosen="linear_probe",
        selection="200 training images, in 5 folds",
        budget=90,
        rungs=rungs,
        signals=Signals(images=200, classes=2, fewest_in_a_class=99, similarity=0.9, h_score=0.7),
        transfer=transfer,
    )
    return plain.model_copy(update=changes)


Page = tuple[Manifest, LabelledImages, list[Row], GraphOutput]
MakePage = Callable[..., Page]


@pytest.fixture
def page(tmp_path: Path) -> MakePage:
    """What a report is made of, of real files: `page(classes=("ant", "bee"), each=10, noise=False)`."""

    def make(classes: Sequence[str] = ("ant", "bee"), each: int = 10, noise: bool = False) -> Page:
        random = np.random.default_rng(0)
        rows = []
        for at, label in enumerate(classes):
            for number in range(each):
                path = tmp_path / f"{at}-{number}.png"
                side = 200 if noise else 24
                Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
                rows.append(Row(str(path), label, sha256_of_file(path), "test", reference=True))
        labels = np.repeat(np.arange(len(classes)), each)
        logits = random.normal(size=(len(rows), len(classes))) + 2 * np.eye(len(classes))[labels]
        probabilities = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        embedding = (random.normal(size=(len(rows), 8)) + 3 * labels[:, None]).astype(np.float32)
        output = GraphOutput(probabilities, embedding, np.zeros((len(rows), 7), np.float32))
        true = [row.label for row in rows]
        guesses = [classes[at] for at in probabilities.argmax(axis=1)]
        metrics, per_class = evaluate.metrics(true, guesses, classes)
        metrics |= evaluate.calibration(probabilities, labels.tolist())
        manifest = Manifest(
            name="insects",
            version="20261121-120000-00001",
            created_at=datetime(2026, 11, 21, 12, tzinfo=UTC),
            classes=tuple(classes),
            input=InputRule(256, 224),
            backbone="mobilenet_v2",
            pretrained=Pretrained(source="default", sha256="ab" * 32),
            strategy="linear_probe",
            why="auto: the cheapest rung that is not measurably worse than the best",
            dataset=Dataset(
                location=str(tmp_path), fingerprint="f" * 64, train=200, validation=40, test=len(rows), captures=1
            ),
            metrics=metrics,
            per_class=per_class,
            temperature=1.3,
            properties=("brightness",),
            precisions=("float32",),
            certificates={
                "float32": Certificate(
                    certified=True, why="", rows=10, agreement=estimate(1.0), accuracy=estimate(0.95),
                    accuracy_loss=0.0, least_agreement=0.99, most_accuracy_loss=0.01, images_per_second=120.0,
                )
            },
            seed=0,
            packages={"python": "3.11"},
        )  # fmt: skip
        images = LabelledImages(str(tmp_path), tuple(classes), tuple(rows), ())
        return manifest, images, rows, output

    return make


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', html)


def test_a_full_report_has_every_section_in_the_order_of_need(page: MakePage) -> None:
    manifest, images, rows, output = page()
    finding = Finding(kind="duplicates_across_splits", message="Two are one.", locations=(rows[0].location, "/gone"))
    manifest = manifest.model_copy(update={"ladder": ladder(), "findings": (finding,)})
    html = render(manifest, images, rows, output, [(rows[3], LabelError(3, 0, 1, 0.9))])
    assert sections(html) == [
        "findings", "numbers", "ladder", "transfer", "classes", "confusion", "worst", "labels", "trust", "map", "data",
        "precisions", "lineage",
    ]  # fmt: skip
    text = Checked(html).text
    accuracy = manifest.metrics["accuracy"]
    assert f"{100 * accuracy.value:.1f} % ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})" in text
    for words in (
        "Duplicates across splits", "Two are one.", "/gone", "Linear probe chosen", "Not tried: expected to add 0.2",
        "≈ 2 min 20 s", "never got there", "4.2 s, 1 epoch", "rather bee?", "Before temperature scaling",
        "1 of them were captured", "python 3.11",
    ):  # fmt: skip
        assert words in text, words


def test_an_old_or_plain_bundle_has_a_report_without_what_it_does_not_know(page: MakePage) -> None:
    manifest, images, rows, output = page(each=2)
    old = {name: each.model_copy(update={"f1": None}) for name, each in manifest.per_class.items()}
    bare = manifest.model_copy(update={"per_class": old, "certificates": {}})
    html = render(bare, images, rows, output)
    assert sections(html) == [
        "numbers", "ladder", "classes", "confusion", "worst", "trust", "data", "precisions", "lineage",
    ]  # fmt: skip
    text = Checked(html).text
    assert "not computed" in text
    assert "the cheapest rung that is not measurably worse" in text
    assert "None stands out" in Checked(render(bare, images, rows, output, [])).text


def test_a_ladder_without_transfer_signals_or_curves_is_shown_too(page: MakePage) -> None:
    manifest, images, rows, output = page()
    bare = Transfer(verdict="not measured", simple_suffices=True, says=())
    flat = tuple(rung.model_copy(update={"curve": ()}) for rung in ladder().rungs)
    for changes in ({"transfer": None, "signals": None}, {"transfer": bare, "rungs": flat, "budget": 0.0}):
        html = render(manifest.model_copy(update={"ladder": ladder(**changes)}), images, rows, output)
        Checked(html)
        assert ("transfer" in sections(html)) == (changes["transfer"] is not None)
        assert "Learning curves" not in html


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(page: MakePage) -> None:
    manifest, images, rows, output = page()
    html = render(manifest.model_copy(update={"ladder": ladder()}), images, rows, output)
    checked = Checked(html)
    assert not {"script", "link", "iframe", "object", "base"} & set(checked.tags)
    for name, value in checked.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "data", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), value
    assert not re.search(r"https?://|@import|url\(", html)
    links = [value[1:] for name, value in checked.attributes if name == "href"]
    assert set(links) <= {value for name, value in checked.attributes if name == "id"}


def test_every_picture_and_chart_says_what_it_shows(page: MakePage) -> None:
    manifest, images, rows, output = page()
    html = render(manifest.model_copy(update={"ladder": ladder()}), images, rows, output)
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", html))
    for chart in re.findall(r"<svg(?: [^>]*)?>.*?</svg>", html, re.S):
        assert 'aria-hidden="true"' in chart or ("<title>" in chart and "<desc>" in chart)
    assert re.search(r"<desc>20 test images by t-SNE, \d+ of them answered wrongly", html)


def test_names_are_text_not_markup(page: MakePage) -> None:
    bad = "<script>alert(1)</script>\"'&{{ 7 * 7 }}"
    manifest, images, rows, output = page(classes=(bad, "bee"))
    rung = Rung(name=bad, tried=False, why=bad)
    curve = ladder().rungs[-1].model_copy(update={"name": bad})
    transfer = ladder().transfer
    assert transfer
    manifest = manifest.model_copy(
        update={
            "name": bad, "why": bad, "backbone": bad, "strategy": bad, "packages": {bad: bad},
            "findings": (Finding(kind=bad, message=bad, locations=(bad, rows[0].location)),),
            "ladder": ladder(rungs=(rung, curve), transfer=transfer.model_copy(update={"says": (bad,)})),
        }
    )  # fmt: skip
    images = replace(images, skipped=(Skipped(bad, bad),))
    html = render(manifest, images, rows, output, [(rows[3], LabelError(3, 1, 0, 0.9))])
    checked = Checked(html)
    assert "script" not in checked.tags
    assert not any(name.startswith("on") for name, _ in checked.attributes)
    assert "{{ 7 * 7 }}" in checked.text


def test_the_page_stays_below_5_megabytes_with_a_hundred_classes_of_long_names(page: MakePage) -> None:
    classes = [f"{'&' * 4000} {at}" for at in range(100)]
    manifest, images, rows, output = page(classes=classes, each=2, noise=True)
    locations = tuple(row.location for row in rows)
    finding = Finding(kind="k" * 4000, message="&" * 100_000, locations=locations + ("&" * 5000,) * 500)
    curve = tuple(CurvePoint(epoch=at, seconds=at / 7, accuracy=0.5) for at in range(20_000))
    long = tuple(rung.model_copy(update={"why": "&" * 50_000, "curve": curve}) for rung in ladder().rungs)
    most = dict.fromkeys([f"{'&' * 100} {at}" for at in range(5000)], manifest.per_class[classes[0]])
    manifest = manifest.model_copy(
        update={"ladder": ladder(rungs=long), "findings": (finding,) * 100, "per_class": manifest.per_class | most}
    )
    images = replace(images, skipped=(Skipped("&" * 5000, "&" * 50_000),) * 10_000)
    suspects = [(row, LabelError(at, 0, 1, 0.9)) for at, row in enumerate(reversed(rows))]
    html = render(manifest, images, rows, output, suspects)
    pictures = len(set(re.findall(r'src="([^"]*)"', html)))
    print(f"\n{len(html.encode()) / 1e6:.2f} MB with {pictures} pictures of noise", end=" ")
    assert pictures >= 40
    assert len(html.encode()) < 5_000_000


def test_an_image_that_is_gone_changed_or_broken_leaves_a_place_not_a_failure(page: MakePage) -> None:
    manifest, images, rows, output = page()
    wrong = [at for at, row in enumerate(rows) if row.label != images.classes[output.probabilities[at].argmax()]]
    Path(rows[wrong[0]].location).unlink()
    html = render(manifest, images, rows, output)
    assert html.count("no longer there") == 1
    changed = Path(rows[wrong[1]].location)
    changed.write_bytes(changed.read_bytes()[:-40])
    assert thumbnail(rows[wrong[1]], ImageLimits()) is None
    assert thumbnail(replace(rows[wrong[1]], digest=sha256_of_file(changed)), ImageLimits()) is None
    assert thumbnail(replace(rows[2], location="/no/such/file"), ImageLimits()) is None


@pytest.mark.parametrize(("size", "shown"), [((400, 200), (160, 80)), ((30, 60), (80, 160)), ((5000, 20), (160, 80))])
def test_a_thumbnail_is_the_whole_frame_upright(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0], size[1] // 2))  # the upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    path = tmp_path / "image.jpg"
    image.rotate(180).save(path, exif=exif, quality=95)
    uri = thumbnail(Row(str(path), "a", sha256_of_file(path), "test"), ImageLimits())
    assert uri
    found = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    assert found.size == shown
    assert max(found.size) == SIDE
    top, bottom = found.getpixel((found.width // 2, 8)), found.getpixel((found.width // 2, found.height - 8))
    assert isinstance(top, tuple)
    assert isinstance(bottom, tuple)
    assert top[0] > 200 > 90 > top[2]
    assert bottom[2] > 200 > 90 > bottom[0]


def test_a_model_without_a_mistake_is_said_to_have_none(page: MakePage) -> None:
    manifest, images, rows, output = page()
    sure = np.where(np.eye(2)[[images.classes.index(row.label) for row in rows]] > 0, 0.99, 0.01).astype(np.float32)
    text = Checked(render(manifest, images, rows, replace(output, probabilities=sure), [])).text
    assert "No test image was answered wrongly." in text
    assert "every test image was answered rightly" in text


def test_rows_that_are_not_of_the_test_split_are_not_reported(page: MakePage) -> None:
    manifest, images, rows, output = page()
    html = render(manifest, images, rows, output)
    others = [replace(row, split="validation", location=f"{row.location}.x") for row in rows]
    parts = (output.probabilities, output.embedding, output.properties)
    twice = GraphOutput(*(np.concatenate([part[::-1], part]) for part in parts))
    assert render(manifest, images, [*others, *rows], twice) == html
