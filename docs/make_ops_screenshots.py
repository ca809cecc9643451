"""Writes docs/ops-*.png, pictures of the operations page of a real server over a ledger with four days in it:
`python -m docs.make_ops_screenshots`. Needs chromium, and the tests' own extras."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import FloatRect, Page

from tests.service.browser import DESKTOP, PHONE, browser, visiting
from tests.service.conftest import make_world, serving
from tests.service.ops_story import CLASSES, begin, drifting, grown, scene

FOLDER = Path(__file__).parent
MOST_BYTES = 190_000
EXTRA = {"PERENNIAL_SERVE__CAPTURE": "all"}


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        world = make_world(Path(home) / "home", name="hedgerow")
        story = begin(world)
        live, _ = grown(story)
        with serving(world, extra=EXTRA) as server, browser() as opened:
            ids = [server.predict(scene(CLASSES[n % 3], n, dark=True))["prediction_id"] for n in range(18)]
            world.settle()
            drifting(story, live, story.examples(live, ids[:6]))
            for name, parts, how in (
                ("light", ("body", "#timelines"), {"viewport": DESKTOP}),
                ("dark", ("#check", "#label"), {"viewport": DESKTOP, "color_scheme": "dark"}),
                ("phone", None, {"viewport": PHONE, "device_scale_factor": 2}),
            ):
                with visiting(opened, server.url, **how) as visit:
                    visit.page.wait_for_selector(".chart canvas")
                    visit.page.locator("#hours label", has_text="7 d" if name == "light" else "24 h").click()
                    visit.page.get_by_role("button", name="Start labelling").click()
                    visit.page.wait_for_selector(".tray img")
                    for image in visit.page.locator("img").all():
                        image.scroll_into_view_if_needed()
                    visit.page.wait_for_timeout(500)
                    visit.page.evaluate("scrollTo(0, 0)")
                    clip = between(visit.page, *parts) if parts else None
                    keep(visit.page.screenshot(full_page=clip is not None, clip=clip), FOLDER / f"ops-{name}.png")


def keep(png: bytes, path: Path) -> None:
    """With as few colours as the eye needs, where the file would be large."""
    path.write_bytes(png)
    if len(png) > MOST_BYTES:
        Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def between(page: Page, first: str, last: str) -> FloatRect:
    """From the top of one part of a page to the end of another, as wide as the page."""
    top, end = (page.locator(each).bounding_box() for each in (first, last))
    assert top is not None
    assert end is not None
    y = max(0.0, top["y"] - 16)
    return {"x": 0, "y": y, "width": DESKTOP["width"], "height": end["y"] + end["height"] + 16 - y}


if __name__ == "__main__":
    main()
