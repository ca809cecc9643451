"""Are the ports free, or held by a Perennial, and by which?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from commands.doctor.findings import Finding, ok, problem, set_to
from perennial.settings import Settings

_CHECK: Final = "ports"
_ANSWERS_WITHIN_SECONDS: Final = 1.0
_LOOPBACK: Final = "127.0.0.1"
_ANY: Final = {"0.0.0.0": _LOOPBACK, "::": "::1"}  # noqa: S104 - what is asked on loopback where all are listened on
_TRIED: Final = 100


@dataclass(frozen=True, slots=True)
class Itself:
    """A Perennial that listens there. `same`: as far as it tells, it is the one of these settings."""

    said: str
    same: bool = True


def look(settings: Settings) -> list[Finding]:
    serve, monitor, name = settings.serve, settings.monitor, settings.name
    others = {serve.port, monitor.port}
    found = [_of("serve", serve.host, serve.port, lambda host: service_at(host, serve.port, name), others)]
    if monitor.port:
        found.append(_of("monitor", monitor.host, monitor.port, lambda host: watcher_at(host, monitor.port), others))
    return found


def _of(section: str, name: str, port: int, ours: Callable[[str], Itself | None], others: set[int]) -> Finding:
    setting = f"{section}.port"
    try:
        host = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        return problem(_CHECK, f"{section}.host {name!r} is not an address: {error}", _address(section))
    refused = _refusal(host, port)
    if refused is None:
        return ok(_CHECK, f"{setting} {port} is free")
    if refused.errno == errno.EADDRNOTAVAIL:
        return problem(_CHECK, f"{host} is not an address of this machine", _address(section))
    free = next((each for each in range(max(port, 1023) + 1, port + 1024 + _TRIED) if _is_free(host, each, others)), 0)
    if refused.errno == errno.EACCES:
        return problem(_CHECK, f"{setting} {port} needs more rights: it is below 1024", set_to(setting, free))
    holds = ours(host)
    if holds is not None:
        if holds.same:
            return ok(_CHECK, f"{setting} {port} is held by Perennial itself: {holds.said}")
        return problem(_CHECK, f"{setting} {port} is held by another Perennial: {holds.said}", set_to(setting, free))
    holder, pid = _holder(port)
    stop = f"kill {pid}; or " if pid else ""
    return problem(_CHECK, f"{setting} {port} is taken by {holder}", f"{stop}{set_to(setting, free)}")


def _address(section: str) -> str:
    return f"{set_to(f'{section}.host', _LOOPBACK)}, or to 0.0.0.0 for every address of this machine"


def service_at(host: str, port: int, name: str) -> Itself | None:
    """The service that answers there; None if it is no Perennial."""
    import httpx

    try:
        answer = httpx.get(f"{_url(host, port)}/v1/model", timeout=_ANSWERS_WITHIN_SECONDS, trust_env=False)
        said = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    if not isinstance(said, dict):
        return None
    if answer.status_code == httpx.codes.OK and "version" in said and "name" in said:
        return Itself(f"{said['name']} {said['version']}", said["name"] == name)
    if str(said.get("type", "")).startswith("urn:perennial:"):
        return Itself("a service that wants a key" if answer.status_code in (401, 403) else "a service without a model")
    return None


def watcher_at(host: str, port: int) -> Itself | None:
    """The watcher that answers there, by its metrics; None if it is no Perennial."""
    import httpx

    try:
        text = httpx.get(f"{_url(host, port)}/metrics", timeout=_ANSWERS_WITHIN_SECONDS, trust_env=False).text
    except httpx.HTTPError:
        return None
    return Itself("its watcher") if "perennial_ledger_up" in text else None


def _url(host: str, port: int) -> str:
    address = _ANY.get(host, host)
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def _refusal(host: str, port: int) -> OSError | None:
    """Why nobody can listen there; None if one can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _is_free(host: str, port: int, others: set[int]) -> bool:
    return port < 2**16 and port not in others and _refusal(host, port) is None


def _holder(port: int) -> tuple[str, int | None]:
    """Who listens there, as far as this user may know."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid is None:
                    break
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})", connection.pid
    except psutil.Error:
        return "another process", None
    return "a process of another user", None
