"""Views whose colours and tones are changed: shapes stay where they are."""

from __future__ import annotations

import numpy as np
import torch

from training.augment import Augmentation, random_views, toned_views

_STILL = Augmentation(smallest=1.0, mirror=False, light=0.0, gray=0.0, tone=0.0)


def _photos(count: int = 64, side: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8))


def _views(how: Augmentation, pixels: torch.Tensor) -> torch.Tensor:
    return random_views(pixels, pixels.shape[1], torch.Generator().manual_seed(1), how)


def test_without_gray_and_tone_views_are_what_they_were_and_their_crops_are_those_with_them() -> None:
    pixels = _photos(400)
    plain = _views(Augmentation().plain_tones(), pixels)
    changed = _views(Augmentation(), pixels)

    same = (plain == changed).flatten(1).all(dim=1)
    assert 0.3 < float(same.float().mean()) < 0.55  # .7 of .6 of them


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


def test_toned_views_have_no_colours_and_four_tones_in_turns() -> None:
    pixels = _photos(8)
    toned = toned_views(pixels)

    assert toned.dtype == torch.uint8
    assert toned.shape == pixels.shape
    assert torch.equal(toned[..., 0], toned[..., 1])
    assert torch.equal(toned[..., 0], toned[..., 2])
    gray = pixels.float().mean(dim=3)
    torch.testing.assert_close(toned[2, ..., 0].float(), (255.0 - gray[2]).round(), atol=1.0, rtol=0.0)
    assert int(toned[0].max()) <= 128


def _fields(how: Augmentation) -> dict[str, object]:
    return {name: getattr(how, name) for name in how.__slots__}
