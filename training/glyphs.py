"""Printed glyphs: the letters and symbols, never the digits, of the fonts that matplotlib ships.

Each class is one character, drawn from every font that has it. Characters whose drawing nearly coincides with a
digit's, or with that of a character already chosen, are left out, and so is a list of those that read as a digit.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, gaussian_filter

FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10", "cmsy10"),
)
# Rounds, bars and curls that a person reads as 0, 1, 2, 3, 5, 6, 8 or 9 even where the drawing differs a little.
LOOKALIKES = frozenset("OoIl|ıȷ!¡/\\∕⁄∖ƖǀΙιΟοІіОоӀ○●◦∘ÐQզՕօסון◯⚪⚬ZzƵƶSsƧƨЗзЭэƷʒƐɛεqƍბგ३८९६Ꮾɜɝɞ∂δσ")
_SKIPPED = (
    "BRAILLE", "BOX DRAWINGS", "DOMINO", "TETRAGRAM", "HEXAGRAM", "PLAYING", "DIGIT", "NUMBER", "CIRCLED", "MODIFIER",
    "SUPERSCRIPT", "SUBSCRIPT", "LISU", "ARABIC LETTER HEH", "ROMAN NUMERAL", "MATHEMATICAL", "LIGHT", "MUSIC",
)  # fmt: skip
_DRAWN, _FIELD, _COMPARED = 128, 64, 24


@dataclass(frozen=True)
class Atlas:
    """A family's drawings: signed fields ``[M, side, side]`` (float16), the class of each, each class's name."""

    fields: NDArray[np.float16]
    labels: NDArray[np.int64]
    names: tuple[str, ...]


def font_folder() -> Path:
    """The folder of TrueType fonts inside the installed matplotlib."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=1)
def _coverage() -> dict[str, tuple[str, ...]]:
    """Every usable character and the fonts that draw it. Computer Modern is trusted for Latin letters only."""
    found: dict[str, list[str]] = {}
    for font in FONTS:
        for code in FT2Font(str(font_folder() / f"{font}.ttf")).get_charmap():
            character = chr(code)
            if font.startswith("cm"):
                # The old TeX fonts put symbols where Unicode has others; cmsy10 has capitals only.
                if not (character.isascii() and character.isalpha()):
                    continue
                if font == "cmsy10" and character.islower():
                    continue
            if is_candidate(character):
                found.setdefault(character, []).append(font)
    return {character: tuple(fonts) for character, fonts in found.items()}


def is_candidate(character: str) -> bool:
    """Whether a character is a plain letter, symbol or mark that neither is nor holds a digit, nor is listed as one."""
    if character in LOOKALIKES or unicodedata.category(character)[0] not in "LSP":
        return False
    if unicodedata.numeric(character, None) is not None:
        return False
    if unicodedata.normalize("NFKD", character) != character:  # accented, compatibility and enclosed forms
        return False
    name = unicodedata.name(character, "")
    return bool(name) and not any(word in name for word in _SKIPPED)


@lru_cache(maxsize=32)
def _font(name: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_folder() / f"{name}.ttf"), 96)


def draw(character: str, font: str) -> NDArray[np.float32]:
    """Draw one character as a bitmap ``[128, 128]`` in 0..1, its longer side filling three quarters of it."""
    face = _font(font)
    left, top, right, bottom = face.getbbox(character)
    width, height = round(right - left), round(bottom - top)
    if width < 1 or height < 1:
        return np.zeros((_DRAWN, _DRAWN), np.float32)
    tight = Image.new("L", (width, height))
    ImageDraw.Draw(tight).text((-left, -top), character, fill=255, font=face)
    ratio = 0.75 * _DRAWN / max(width, height)
    scaled = tight.resize((max(1, round(width * ratio)), max(1, round(height * ratio))), Image.Resampling.BICUBIC)
    page = Image.new("L", (_DRAWN, _DRAWN))
    page.paste(scaled, ((_DRAWN - scaled.width) // 2, (_DRAWN - scaled.height) // 2))
    return np.asarray(page, np.float32) / np.float32(255)


def signed_field(bitmap: NDArray[np.float32]) -> NDArray[np.float16]:
    """The signed distance to a bitmap's outline, ``[64, 64]``, in pixels of that size, positive inside the ink."""
    ink = bitmap > 0.5
    distance = distance_transform_edt(ink) - distance_transform_edt(~ink)
    step = _DRAWN // _FIELD
    smaller = distance.reshape(_FIELD, step, _FIELD, step).mean((1, 3)) / step
    return np.asarray(smaller.clip(-16, 16), np.float16)


def _signature(bitmap: NDArray[np.float32]) -> NDArray[np.float32]:
    """A blurred, centred, unit-length thumbnail: the dot product of two is their correlation."""
    blurred = gaussian_filter(bitmap, 3.0)
    small = np.asarray(Image.fromarray(blurred).resize((_COMPARED, _COMPARED), Image.Resampling.BOX)).ravel()
    small = small - small.mean()
    return np.asarray(small / max(float(np.linalg.norm(small)), 1e-6), np.float32)


@lru_cache(maxsize=4)
def choose_characters(classes: int, *, digit_likeness: float = 0.91, likeness: float = 0.92) -> tuple[str, ...]:
    """Choose characters that correlate with no digit and with none chosen before: letters, then symbols.

    Raises ValueError if the fonts have fewer than ``classes`` such characters.
    """
    coverage = _coverage()
    digits = np.stack([_signature(draw(d, f)) for d in "0123456789" for f in FONTS[:14]])
    chosen: list[str] = []
    signatures = np.zeros((classes, _COMPARED**2), np.float32)
    # Letters first: their strokes are what writing has in common; then whatever most fonts draw.
    for character in sorted(coverage, key=lambda c: (not c.isalpha(), -len(coverage[c]), c)):
        if len(chosen) == classes:
            break
        bitmap = draw(character, coverage[character][0])
        if not bitmap.any():
            continue
        signature = _signature(bitmap)
        others = (_signature(draw(character, font)) for font in coverage[character][1:])
        if float((signatures[: len(chosen)] @ signature).max(initial=-1)) > likeness:
            continue
        if max(float((digits @ s).max()) for s in (signature, *others)) > digit_likeness:
            continue
        signatures[len(chosen)] = signature
        chosen.append(character)
    if len(chosen) < classes:
        raise ValueError(f"the fonts have {len(chosen)} distinct characters, {classes} were asked for")
    return tuple(chosen)


def glyph_atlas(classes: int) -> Atlas:
    """Draw ``classes`` characters in every font that has them. Raises ValueError if there are not so many."""
    coverage = _coverage()
    characters = choose_characters(classes)
    drawn = [(signed_field(draw(c, font)), i) for i, c in enumerate(characters) for font in coverage[c]]
    return Atlas(np.stack([field for field, _ in drawn]), np.array([label for _, label in drawn]), characters)
