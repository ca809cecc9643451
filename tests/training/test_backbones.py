from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from perennial.errors import InvalidParameter, WeightsChanged, WeightsUnavailable
from perennial.images import InputRule
from training import backbones
from training.pretrain import builtin_checkpoint

WIDTHS = {
    "convnext_tiny": 768, "mobilenet_v2": 1280, "mobilenet_v3_small": 576, "resnet18": 512,
    "shufflenet_v2_x0_5": 1024, "squeezenet1_1": 512, "swin_t": 768,
}  # fmt: skip


@pytest.fixture
def resnet_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return dict(torchvision.models.resnet18(weights=None, num_classes=5).state_dict())


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
def test_each_family_gives_one_feature_vector_an_image(name: str, width: int) -> None:
    backbone = backbones.load(name, "none", image_size=64)
    assert backbone.width == width
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    features = backbone.network(backbones.normalised(pixels, backbone))
    assert features.shape == (3, width)
    assert features.isfinite().all()
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_random_weights_are_the_seeds() -> None:
    first, again, other = (backbones.load("squeezenet1_1", "none", image_size=64, seed=seed) for seed in (1, 1, 2))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(first.network(images), again.network(images))
    assert not torch.equal(first.network(images), other.network(images))
    assert first.weights_sha256 == ""


def test_the_builtin_weights_give_the_checkpoints_own_features() -> None:
    backbone = backbones.load("mobilenet_v3_small", "builtin")
    state = {key.removeprefix("features."): value.float() for key, value in load_file(_builtin()).items()}
    body = torchvision.models.mobilenet_v3_small(weights=None).features.eval()
    missing, unexpected = body.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(backbone.network(images), body(images).mean(dim=(2, 3)), atol=1e-5)
    assert backbone.rule.resize == backbone.rule.crop
    assert len(backbone.weights_sha256) == 64


def _builtin() -> Path:
    return builtin_checkpoint("mobilenet_v3_small")


def test_backbones_without_builtin_weights_name_those_that_have_some() -> None:
    with pytest.raises(WeightsUnavailable, match="mobilenet_v3_small"):
        backbones.load("resnet18", "builtin")


def test_without_a_network_default_weights_fail_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(WeightsUnavailable) as caught:
        backbones.load("resnet18", "default")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18" in message
    assert "--weights PATH" in message
    assert "--weights builtin with --backbone mobilenet_v3_small" in message
    assert "--weights none" in message
    assert capsys.readouterr().out == ""  # results go there, and nothing else


def test_default_weights_are_taken_from_torchvisions_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet_state: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    cached = tmp_path / "hub" / "checkpoints" / published
    cached.parent.mkdir(parents=True)
    torch.save(resnet_state, cached)
    backbone = backbones.load("resnet18", "default")
    assert torch.equal(backbone.network.state_dict()["conv1.weight"], resnet_state["conv1.weight"])
    assert backbone.rule == InputRule(resize=256, crop=224)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_local_file_may_have_another_head_or_none(
    suffix: str, tmp_path: Path, resnet_state: dict[str, torch.Tensor]
) -> None:
    for number, drop in enumerate(("nothing", "fc.")):
        state = {key: value for key, value in resnet_state.items() if not key.startswith(drop)}
        path = tmp_path / f"{number}{suffix}"
        if suffix == ".pth":
            torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
        else:
            save_file(state, path)
        backbone = backbones.load("resnet18", str(path))
        assert torch.equal(backbone.network.state_dict()["conv1.weight"], resnet_state["conv1.weight"])
        assert backbone.source == str(path)


def test_a_file_with_other_keys_is_refused_and_the_keys_are_named(
    tmp_path: Path, resnet_state: dict[str, torch.Tensor]
) -> None:
    state = dict(resnet_state)
    state["stem.weight"] = state.pop("conv1.weight")
    state["layer1.0.conv1.weight"] = torch.zeros(2, 2)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(WeightsUnavailable) as caught:
        backbones.load("resnet18", str(tmp_path / "odd.pth"))
    message = str(caught.value)
    assert "1 missing (conv1.weight)" in message
    assert "1 unexpected (stem.weight)" in message
    assert "1 of another shape (layer1.0.conv1.weight)" in message


def test_another_networks_weights_are_refused(tmp_path: Path, resnet_state: dict[str, torch.Tensor]) -> None:
    torch.save(resnet_state, tmp_path / "resnet18.pth")
    with pytest.raises(WeightsUnavailable, match="does not fit the features of mobilenet_v2"):
        backbones.load("mobilenet_v2", str(tmp_path / "resnet18.pth"))


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"conv1.weight": Payload(trace)}, tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(trace)))
    for name in ("bad.pth", "plain.pth"):
        with pytest.raises(WeightsUnavailable, match="not a file of plain weights"):
            backbones.load("resnet18", str(tmp_path / name))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors"])
def test_a_broken_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(WeightsUnavailable, match=name):
        backbones.load("resnet18", str(tmp_path / name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailable, match=r"there is no weights file .*gone.pth"):
        backbones.load("resnet18", str(tmp_path / "gone.pth"))


def test_a_changed_checkpoint_is_refused() -> None:
    digest = backbones.load("mobilenet_v3_small", "builtin").weights_sha256
    assert backbones.load("mobilenet_v3_small", "builtin", expected_sha256=digest).weights_sha256 == digest
    with pytest.raises(WeightsChanged, match=digest):
        backbones.load("mobilenet_v3_small", "builtin", expected_sha256="0" * 64)


def test_an_unknown_backbone_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidParameter, match="no classification network 'resnet19'; it has: alexnet"):
        backbones.load("resnet19", "none")


def test_a_size_the_network_cannot_see_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="convnext_tiny cannot see 8 x 8 pixels"):
        backbones.load("convnext_tiny", "none", image_size=8)


def test_an_image_size_scales_the_resize_with_the_crop() -> None:
    assert backbones.load("resnet18", "none").rule == InputRule(resize=256, crop=224)
    assert backbones.load("resnet18", "none", image_size=112).rule == InputRule(resize=128, crop=112)
    rule = backbones.load("resnet18", "none", image_size=100).rule
    assert backbones.load("resnet18", "none", image_size=rule.crop).rule == rule
