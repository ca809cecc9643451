"""Three floors: the ground, three wings, the roof; every arrow points down."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = {"service", "training", "monitoring"}
ROOF = {"commands"}
HEAVY = {"torch", "torchvision", "evidently", "bentoml", "pandas", "sklearn", "scipy"}


def imported(package: str, *, at_import: bool = False) -> dict[str, set[str]]:
    """Top-level names that each module of a package imports; `at_import`: only those outside functions."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        lazy = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_only(node)
            for inner in ast.walk(node)
        }
        names: set[str] = set()
        for node in ast.walk(tree):
            if at_import and id(node) in lazy:
                continue
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative imports hide where a name comes from"
                names.add((node.module or "").split(".")[0])
        found[str(path.relative_to(ROOT))] = names
    assert found, f"{package} has no modules"
    return found


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@pytest.mark.parametrize("wing", sorted(WINGS))
def test_a_wing_stands_on_the_ground_only(wing: str) -> None:
    forbidden = (WINGS | ROOF) - {wing}
    offenders = {path: names & forbidden for path, names in imported(wing).items() if names & forbidden}
    assert not offenders


def test_the_ground_knows_nobody_above_it() -> None:
    forbidden = WINGS | ROOF | HEAVY
    offenders = {path: names & forbidden for path, names in imported("perennial").items() if names & forbidden}
    assert not offenders


def test_the_roof_imports_a_wing_only_inside_the_verb_that_needs_it() -> None:
    forbidden = WINGS | HEAVY
    offenders = {
        path: names & forbidden for path, names in imported("commands", at_import=True).items() if names & forbidden
    }
    assert not offenders


def test_the_service_never_imports_what_the_serving_image_lacks() -> None:
    forbidden = HEAVY - {"bentoml"}
    offenders = {path: names & forbidden for path, names in imported("service").items() if names & forbidden}
    assert not offenders
