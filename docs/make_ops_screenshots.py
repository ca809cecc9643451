"""Writes docs/ops-*.png, pictures of the operations page of a real server over a ledger with four days in it:
`python -m docs.make_ops_screenshots`. Needs chromium, and the tests' own extras."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.service.browser import DESKTOP, PHONE, browser, visiting
from tests.service.conftest import make_world, serving
from tests.service.ops_story import CLASSES, begin, drifting, grown, scene

FOLDER = Path(__file__).parent
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
            top = {"x": 0, "y": 0, "width": DESKTOP["width"], "height": 1330}
            for name, clip, how in (
                ("light", top, {"viewport": DESKTOP}),
                ("dark", {**top, "y": 1330, "height": 1750}, {"viewport": DESKTOP, "color_scheme": "dark"}),
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
                    visit.page.screenshot(path=FOLDER / f"ops-{name}.png", full_page=name != "phone", clip=clip)


if __name__ == "__main__":
    main()
