"""Every link of the README and of the pages in `docs/` leads somewhere, every page is found from the index, and the
settings and metrics that they name are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from commands.main import app
from docs import make_metrics_page, make_settings_page
from perennial.settings import known_keys
from tests.command_checks import VARIABLES
from tests.documented_commands import PAGES, ROOT, inline_code, outside_of_blocks

INDEX = "docs/README.md"
#: A field of a check's document, written like a setting; what a benchmark measures, written like a metric.
NO_SETTINGS = {"retrain.why"}
NO_METRICS = {"perennial_capture"}
ELSEWHERE = ("http://", "https://", "mailto:")


def links(page: str) -> list[tuple[str, str]]:
    """(path from the root, anchor) of each link and picture; either may be empty only as a link within the page."""
    text = re.sub(r"`[^`]*`", "", outside_of_blocks(PAGES[page]))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    found = []
    for target in targets:
        if not target.startswith(ELSEWHERE):
            path, _, anchor = target.partition("#")
            whole = (ROOT / page).parent / path if path else ROOT / page
            found.append((whole.resolve().relative_to(ROOT.resolve()).as_posix(), anchor))
    return found


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings: lower case, without punctuation, hyphens for spaces."""
    headings = re.findall(r"^#{1,6} (.+)$", outside_of_blocks(text), flags=re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    lost = [path for path, _ in links(page) if not (ROOT / path).exists()]
    lost += [f"{path}#{anchor}" for path, anchor in links(page) if anchor and anchor not in anchors(PAGES[path])]
    assert not lost


def test_every_page_is_found_from_the_index_and_the_index_from_the_readme() -> None:
    assert INDEX in {path for path, _ in links("README.md")}
    listed = {path for path, _ in links(INDEX)}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages - listed - {INDEX} == set()


def test_every_picture_in_docs_is_shown_somewhere() -> None:
    shown = {path for page in PAGES for path, _ in links(page)}
    pictures = {path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".svg")}
    assert {path.relative_to(ROOT).as_posix() for path in pictures} - shown == set()


def test_anchors_are_made_as_github_makes_them() -> None:
    text = "## `GET /v1/status`, and more\n### What's new? (2)\n```sh\n# no heading\n```\n"
    assert anchors(text) == {"get-v1status-and-more", "whats-new-2"}


def test_the_links_in_other_files_of_the_project_lead_to_pages() -> None:
    """Help texts, settings, alerts and manifests name pages, some with an anchor."""
    for folder in ("commands", "deploy", "perennial", "service", "training", "monitoring"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yml", ".yaml", ".service", ".timer", ".crontab", ".html", ".js"):
                for page, anchor in re.findall(r"\b(docs/[\w-]+\.md)(?:#([\w-]+))?", path.read_text("utf-8")):
                    where = Path(path).relative_to(ROOT)
                    assert page in PAGES, f"{where}: {page}"
                    assert not anchor or anchor in anchors(PAGES[page]), f"{where}: {page}#{anchor}"


def test_every_verb_is_shown_somewhere() -> None:
    def verbs(command: Any, words: str) -> Iterator[str]:
        inner = getattr(command, "commands", {})
        if not inner:
            yield words
        for name, each in inner.items():
            yield from verbs(each, f"{words} {name}")

    text = "\n".join(PAGES.values())
    assert [each for each in verbs(typer.main.get_command(app), "perennial") if each not in text] == []


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_settings_that_a_page_names_are_there(page: str) -> None:
    known = set(known_keys())
    sections = "|".join({key.partition(".")[0] for key in known if "." in key})
    named = [re.match(rf"(?:{sections})\.[a-z_0-9]+(?= =|$)", code) for code in inline_code(PAGES[page])]
    assert {match[0] for match in named if match} - known - NO_SETTINGS == set()
    variables = set(re.findall(r"\bPERENNIAL_[A-Z_]*[A-Z]\b", PAGES[page]))
    assert variables - VARIABLES - {"PERENNIAL_TEST_DATA"} == set()


def test_the_page_of_settings_is_what_they_say_of_themselves() -> None:
    assert PAGES["docs/settings.md"] == make_settings_page.page(), "run python docs/make_settings_page.py"


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_metrics_that_a_page_names_are_there(page: str) -> None:
    known = {part for name in make_metrics_page.names() for part in (name, name.removesuffix("_bucket"))}
    named = {name for code in inline_code(PAGES[page]) for name in re.findall(r"^(perennial_[a-z_]+[a-z])\b", code)}
    assert named - known - NO_METRICS == set()
