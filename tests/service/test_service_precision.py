"""Which precision and runtime a worker serves in, and what happens when they cannot be had."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from perennial.bundle import Certificate, Estimate, Manifest, new_version, open_bundle, upload_bundle, write_bundle
from perennial.errors import InvalidSettings
from perennial.graph import BFLOAT16, FLOAT32, INT8, ONNXRUNTIME, OPENVINO, available_precisions
from perennial.ledger import models
from perennial.ledger.events import EventKind
from perennial.settings import Settings, load_settings
from perennial.settings_sections import ServeSettings
from service import precision
from service.inference import Inference, ModelHandle
from service.live_model import LiveModels
from service.loaded_model import load
from tests.service.conftest import World, picture, serving

needs_bfloat16 = pytest.mark.skipif(
    BFLOAT16 not in available_precisions(OPENVINO), reason="this processor has no bfloat16"
)


def certificate(images_per_second: float, why: str = "") -> Certificate:
    one = Estimate(value=1.0, low=0.99, high=1.0)
    return Certificate(
        certified=not why,
        why=why,
        rows=500,
        agreement=one,
        accuracy=one,
        accuracy_loss=0.0,
        least_agreement=0.99,
        most_accuracy_loss=0.005,
        images_per_second=images_per_second,
    )


def publish(world: World, certificates: Mapping[str, Certificate]) -> str:
    """The colours' model with these certificates, live."""
    plain = open_bundle(world.home / "made" / world.publish())
    manifest = plain.manifest.model_copy(
        update={
            "version": new_version(),
            "certificates": dict(certificates),
            "precisions": tuple(name for name, found in certificates.items() if found.certified),
        }
    )
    bundle = write_bundle(
        world.home / "made", manifest, lambda folder: shutil.copy(plain.graph, folder / plain.graph.name)
    )
    models.register(world.engine, bundle, upload_bundle(bundle, world.storage))
    world.deploy(manifest.version)
    return manifest.version


def manifest_of(world: World, certificates: Mapping[str, Certificate]) -> Manifest:
    return open_bundle(world.home / "made" / publish(world, certificates)).manifest


def serving_as(settings: Settings, **serve: str) -> Settings:
    return settings.model_copy(update={"serve": settings.serve.model_copy(update=serve)})


def on(monkeypatch: pytest.MonkeyPatch, *precisions: str) -> None:
    """A processor that computes natively in these."""
    monkeypatch.setattr(precision, "available_precisions", lambda runtime: precisions)


def test_auto_is_the_fastest_certified_precision_that_the_processor_has(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = manifest_of(
        world, {FLOAT32: certificate(1000), BFLOAT16: certificate(1500), INT8: certificate(2000, "it differs")}
    )
    on(monkeypatch, FLOAT32, BFLOAT16, INT8)
    assert precision.choose(manifest, ServeSettings()) == (OPENVINO, BFLOAT16)
    on(monkeypatch, FLOAT32, INT8)
    assert precision.choose(manifest, ServeSettings()) == (OPENVINO, FLOAT32)


def test_a_precision_that_is_hardly_faster_is_not_worth_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, FLOAT32, BFLOAT16)
    manifest = manifest_of(world, {FLOAT32: certificate(1000), BFLOAT16: certificate(1050)})
    assert precision.choose(manifest, ServeSettings()) == (OPENVINO, FLOAT32)
    assert precision.choose(manifest, ServeSettings(precision=BFLOAT16)) == (OPENVINO, BFLOAT16)


def test_a_bundle_without_certificates_is_served_in_float32(world: World) -> None:
    manifest = open_bundle(world.home / "made" / world.publish()).manifest
    assert manifest.certificates == {}
    assert precision.choose(manifest, ServeSettings()) == (OPENVINO, FLOAT32)


def test_a_precision_that_is_not_certified_is_refused_with_the_reason(world: World) -> None:
    manifest = manifest_of(world, {FLOAT32: certificate(1000), INT8: certificate(2000, "97.0% of the labels agree")})
    with pytest.raises(InvalidSettings, match=r"certified for float32 only \(97.0% of the labels agree\)"):
        precision.choose(manifest, ServeSettings(precision=INT8))
    with pytest.raises(InvalidSettings, match="did not try bfloat16"):
        precision.choose(manifest, ServeSettings(precision=BFLOAT16))


def test_a_precision_that_the_processor_lacks_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, FLOAT32)
    manifest = manifest_of(world, {FLOAT32: certificate(1000), BFLOAT16: certificate(1500)})
    with pytest.raises(InvalidSettings, match=r"does not compute natively.*set serve.precision to auto"):
        precision.choose(manifest, ServeSettings(precision=BFLOAT16))


def test_onnx_runtime_serves_float32_whatever_else_is_certified(world: World) -> None:
    manifest = manifest_of(world, {FLOAT32: certificate(1000), BFLOAT16: certificate(1500)})
    assert precision.choose(manifest, ServeSettings(runtime=ONNXRUNTIME)) == (ONNXRUNTIME, FLOAT32)


@pytest.fixture
def inference() -> Iterator[Inference]:
    inference = Inference(ServeSettings(), threads=1)
    yield inference
    inference.close()


@needs_bfloat16
def test_a_model_says_what_it_runs_in(world: World, inference: Inference) -> None:
    version = publish(world, {FLOAT32: certificate(1000), BFLOAT16: certificate(1500)})
    live = load(world.engine, world.storage, world.settings, version, inference)
    assert (live.precision, live.model.precision) == (BFLOAT16, BFLOAT16)
    plain = load(world.engine, world.storage, serving_as(world.settings, precision=FLOAT32), version, inference)
    assert (plain.precision, plain.model.precision) == (FLOAT32, FLOAT32)

    async def label(model: ModelHandle) -> int:
        return int((await inference.score(model, picture("red"))).probabilities.argmax())

    with asyncio.Runner() as runner:
        assert runner.run(label(live.model)) == runner.run(label(plain.model)) == 0


def test_a_model_without_the_precision_asked_for_leaves_the_old_one_serving(world: World, inference: Inference) -> None:
    first = publish(world, {FLOAT32: certificate(1000), BFLOAT16: certificate(1500), INT8: certificate(500)})
    settings = serving_as(world.settings, precision=FLOAT32)
    live = LiveModels(lambda: world.engine, world.storage, settings, inference)
    live.look()
    assert live.get().version == first
    live._settings = serving_as(world.settings, precision=INT8)  # as a worker that was started so
    second = publish(world, {FLOAT32: certificate(1000)})
    live.look()
    assert live.get().version == first
    (failed,) = world.events(EventKind.SWAP_FAILED)
    assert (failed.detail["version"], failed.detail["keeps"]) == (second, first)
    assert "set serve.precision to auto" in failed.detail["why"]


def test_a_server_on_onnx_runtime_answers_and_its_metrics_and_rows_say_so(world: World) -> None:
    version = publish(world, {FLOAT32: certificate(1000), BFLOAT16: certificate(1500)})
    with serving(world, extra={"PERENNIAL_SERVE__RUNTIME": ONNXRUNTIME}) as server:
        assert server.predict(picture("blue"))["label"] == "blue"
        assert (
            f'perennial_live_model_info{{precision="float32",runtime="onnxruntime",version="{version}"}} 1.0'
            in server.http.get("/metrics").text
        )
        card = server.http.get("/v1/model").json()
        assert card["precisions"] == [FLOAT32, BFLOAT16]
        assert card["certificates"][BFLOAT16]["agreement"]["value"] == 1


@pytest.mark.parametrize("runtime", ["tvm", "OpenVINO"])
def test_an_unknown_runtime_is_a_setting_out_of_range(home: Path, runtime: str) -> None:
    with pytest.raises(InvalidSettings, match=r"serve\.runtime"):
        load_settings(serve={"runtime": runtime})
