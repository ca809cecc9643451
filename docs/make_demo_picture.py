"""Writes docs/demo.svg, the demo's timeline, from a real run: `python docs/make_demo_picture.py`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from commands.demo import Moment, timeline_table


def main() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "commands.main", "demo", "--json"], check=True, capture_output=True, text=True
    )
    document = json.loads(done.stdout)
    console = Console(record=True, width=150, file=io.StringIO())
    console.print(timeline_table([Moment(**moment) for moment in document["timeline"]]))
    console.print(f"\n{document['requests']:,} requests, {document['failed']} failed, {document['seconds']:.0f} s")
    console.save_svg(str(Path(__file__).with_name("demo.svg")), title="make demo")


if __name__ == "__main__":
    main()
