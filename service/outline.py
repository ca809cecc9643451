"""The service as the process that starts its workers needs it: what it is called, how many there are, where they find
it. Without what only the workers import, which would double the time to the first answer."""

from __future__ import annotations

from typing import Any, Final

import bentoml

from perennial.settings_sections import ServeSettings

NAME: Final = "perennial"
# Ours answers first, with a problem document; BentoML's is there for what might never come back.
_LAST_RESORT_SECONDS: Final = 15.0


def options(serve: ServeSettings) -> dict[str, Any]:
    """What `bentoml.service` is told, here and in the workers."""
    return {
        "name": NAME,
        "workers": serve.workers,
        "http": {"host": serve.host, "port": serve.port},
        "traffic": {"timeout": serve.timeout + _LAST_RESORT_SECONDS},
        "logging": {"access": {"enabled": False}},
    }


def outline(serve: ServeSettings) -> bentoml.Service:
    """A service that BentoML can start workers of."""
    return bentoml.service(**options(serve), service_class=_Outline)(_Nothing)


class _Outline(bentoml.Service):  # type: ignore[misc]  # BentoML ships no types that mypy follows
    @property
    def import_string(self) -> str:
        return "service.app:Perennial"


class _Nothing:
    pass
