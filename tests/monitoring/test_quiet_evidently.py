"""Evidently is imported faster, and is what it was."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
from pydantic.v1 import BaseModel, ValidationError, validator
from pydantic.v1 import main as pydantic_v1

from monitoring.quiet_evidently import quietly

#: Every field of every model in Evidently that is imported: its type, its default, whether it is needed, and by how
#: many functions it is validated.
_FIELDS = """
import contextlib, json, sys
from monitoring.quiet_evidently import quietly
with {"quietly": quietly, "plainly": contextlib.nullcontext}[sys.argv[1]]():
    import evidently, evidently.sdk.models, evidently.sdk.panels, evidently.ui.storage.local.base
from pydantic.v1 import BaseModel
def told(field):
    parts = [told(each) for each in field.sub_fields or ()]
    validators = [len(some or ()) for some in (field.validators, field.pre_validators, field.post_validators)]
    default = None if callable(field.default) else repr(field.default).partition(" object at ")[0]
    return [field.name, repr(field.outer_type_), default, repr(field.required), field.alias, validators, parts]
def below(kind):
    for each in kind.__subclasses__():
        yield each
        yield from below(each)
found = {f"{kind.__module__}.{kind.__qualname__}": [told(field) for field in kind.__fields__.values()]
         for kind in below(BaseModel) if kind.__module__.startswith("evidently.")}
print(json.dumps(found, sort_keys=True))
"""


def fields(how: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", _FIELDS, how], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_of_its_models_have_the_fields_they_would_have_had() -> None:
    plain, quiet = fields("plainly"), fields("quietly")
    assert len(plain) > 500
    assert quiet == plain


def test_a_class_changes_no_field_of_the_class_it_inherits_from() -> None:
    before = pydantic_v1.smart_deepcopy
    with quietly():

        class Base(BaseModel):
            values: dict[str, list[int]] = {"a": [1]}
            name: str = "base"

        class Stricter(Base):
            class Config:
                fields = {"name": {"alias": "title"}}  # noqa: RUF012

            @validator("name", allow_reuse=True)
            def is_short(cls, name: str) -> str:  # noqa: N805
                if len(name) > 10:
                    raise ValueError("too long")
                return name

    assert pydantic_v1.smart_deepcopy is before, "only while it is imported"
    assert Base(name="much longer than ten").name == "much longer than ten"
    assert Base.__fields__["name"].alias == "name"
    assert Stricter.__fields__["name"].alias == "title"
    assert not Base.__fields__["name"].class_validators
    with pytest.raises(ValidationError, match="too long"):
        Stricter(title="much longer than ten")
    one = Stricter()
    one.values["a"].append(2)
    assert Stricter().values == Base().values == deepcopy(Base.__fields__["values"].default) == {"a": [1]}
