"""`perennial doctor` tells a port that a service of Perennial has from one that somebody else has."""

from __future__ import annotations

import httpx

from commands.doctor import ports
from perennial.settings import load_settings
from tests.service.conftest import Server


def test_a_port_that_the_service_itself_has_is_well(shared_server: Server) -> None:
    port = httpx.URL(shared_server.url).port
    assert port is not None
    version = shared_server.http.get("/v1/model").json()["version"]
    assert ports.service_at("127.0.0.1", port, "colours") == ports.Itself(f"colours {version}", same=True)
    found = ports.look(load_settings(name="colours", serve={"port": port}, monitor={"port": 0}))
    assert [(each.level, each.mend) for each in found] == [("ok", "")]
    assert "held by Perennial itself" in found[0].found

    other = ports.look(load_settings(name="shapes", serve={"port": port}, monitor={"port": 0}))
    assert other[0].level == "problem"
    assert f"another Perennial: colours {version}" in other[0].found
    assert "set serve.port = " in other[0].mend
    assert ports.watcher_at("127.0.0.1", port) is None
