"""Writes docs/settings.md from the settings themselves: `python docs/make_settings_page.py`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perennial.settings import Settings

HEAD = """# Settings

Kept in `perennial.toml` in the working directory (or the file that `--config` or `$PERENNIAL_CONFIG` names), and
overridden by environment variables: `serve.port` is `PERENNIAL_SERVE__PORT`. An unknown key is an error that names the
nearest known one. This page is written by `python docs/make_settings_page.py`.

```toml
name = "steel"

[serve]
port = 8080

[monitor]
window = 2000
```
"""


def row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | `{field.default}` | {field.description} |\n"


def page() -> str:
    text = HEAD
    header = "\n| setting | default | meaning |\n| --- | --- | --- |\n"
    text += header
    sections = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            sections.append((name, type(field.default)))
        else:
            text += row(name, field)
    for name, section in sections:
        text += f"\n## `[{name}]`\n\n{(section.__doc__ or '').strip()}\n{header}"
        for inner, field in section.model_fields.items():
            text += row(f"{name}.{inner}", field)
    return text


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page(), "utf-8")
