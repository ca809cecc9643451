"""Writes docs/demo.svg, the demo's timeline, from a real run: `python docs/make_demo_picture.py`."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from commands.demo_story import Moment, timeline_table


def main() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "commands.main", "demo", "--json"], check=True, capture_output=True, text=True
    )
    document = json.loads(done.stdout)
    console = Console(record=True, width=140, file=io.StringIO(), highlight=False)
    console.print(timeline_table([Moment(**moment) for moment in document["timeline"]]))
    console.print(f"\n{document['requests']:,} requests, {document['failed']} failed, {document['seconds']:.0f} s")
    svg = console.export_svg(title="make demo")
    # Rich's template loads its font from elsewhere; the reader's own monospaced one will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    Path(__file__).with_name("demo.svg").write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
