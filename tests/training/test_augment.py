"""Views whose colours and tones are changed: shapes stay where they are."""

from __future__ import annotations

import numpy as np
import torch

from training.augment import DEFAULT, Augmentation, random_views, toned_views

_STILL = Augmentation(smallest=1.0, mirror=False, light=0.0, gray=0.0, tone=0.0, texture=0.0)


def _photos(count: int = 64, side: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8))


def _views(how: Augmentation, pixels: torch.Tensor) -> torch.Tensor:
    return random_views(pixels, pixels.shape[1], torch.Generator().manual_seed(1), how)


def test_without_gray_and_tone_views_are_what_they_were_and_their_crops_are_those_with_them() -> None:
    pixels = _photos(400)
    plain = _views(DEFAULT.plain_tones(), pixels)
    changed = _views(DEFAULT, pixels)

    same = (plain == changed).flatten(1).all(dim=1)
    assert 0.2 < float(same.float().mean()) < 0.4  # .7 of .6 of .7 of them


def test_gray_takes_the_colours_and_nothing_else() -> None:
    pixels = _photos()
    gray = _views(Augmentation(**{**_fields(_STILL), "gray": 1.0}), pixels)

    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    torch.testing.assert_close(gray[:, 0], _views(_STILL, pixels).mean(dim=1))


def test_every_change_of_tone_occurs_and_stays_within_the_range_of_pixels() -> None:
    pixels = _photos()
    plain = _views(_STILL, pixels)
    toned = _views(Augmentation(**{**_fields(_STILL), "tone": 1.0}), pixels)

    inverted = (toned - (255.0 - plain)).abs().flatten(1).amax(dim=1) < 1e-3
    posterised = (toned % 64.0 == 0).flatten(1).float().mean(dim=1) > 0.7
    solarised = toned.flatten(1).amax(dim=1) <= 128.0
    assert inverted.any()
    assert posterised.any()
    assert solarised.any()
    assert float(toned.min()) >= 0.0
    assert float(toned.max()) <= 255.0


def test_a_random_filter_of_its_own_changes_the_textures_of_a_view_and_shapes_stay_where_they_are() -> None:
    pixels = torch.zeros(64, 32, 32, 3, dtype=torch.uint8)
    pixels[:, :, 16:] = 255
    plain = _views(_STILL, pixels)
    found = _views(Augmentation(**{**_fields(_STILL), "texture": 1.0}), pixels)

    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 255.0
    assert not (found == plain).flatten(1).all(dim=1).any()
    assert len({round(float(each[:, 16, 26].sum()), 3) for each in found}) > 50  # filters differ
    # Away from the edge by more than a filter's reach (a crop may move it a little), either half is even.
    dark, bright = found[:, :, 4:28, 4:8], found[:, :, 4:28, 24:28]
    assert float(dark.flatten(2).std(dim=2).max()) < 1.0
    assert float(bright.flatten(2).std(dim=2).max()) < 1.0
    between = (dark - bright).flatten(2).mean(dim=2).abs().amax(dim=1)
    assert float((between > 10.0).float().mean()) > 0.9  # and the edge can still be seen
    half = _views(Augmentation(**{**_fields(_STILL), "texture": 0.5}), pixels)
    assert 0.3 < float((half == plain).flatten(1).all(dim=1).float().mean()) < 0.7


def test_toned_views_have_no_colours_and_five_tones_in_turns() -> None:
    pixels = _photos(10)
    toned = toned_views(pixels)

    assert toned.dtype == torch.uint8
    assert toned.shape == pixels.shape
    of_four = torch.arange(10) % 5 != 4
    assert torch.equal(toned[of_four][..., 0], toned[of_four][..., 1])
    assert torch.equal(toned[of_four][..., 0], toned[of_four][..., 2])
    assert not torch.equal(toned[4][..., 0], toned[4][..., 1])  # a filter mixes channels, each its own way
    assert torch.equal(toned, toned_views(pixels))
    gray = pixels.float().mean(dim=3)
    torch.testing.assert_close(toned[2, ..., 0].float(), (255.0 - gray[2]).round(), atol=1.0, rtol=0.0)
    assert int(toned[0].max()) <= 128


def _fields(how: Augmentation) -> dict[str, object]:
    return {name: getattr(how, name) for name in how.__slots__}
