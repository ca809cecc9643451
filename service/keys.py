"""Who may call what: API keys, and the rule for this machine where there is no key for admin calls.

A key is 256 random bits, so its plain sha256 says nothing about it: unlike a password it cannot be guessed, and a slow
hash would only cost time on every call. What is sent is hashed and compared with every key there is, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from perennial.errors import Forbidden, InvalidParameter, Unauthorized
from perennial.settings_sections import ApiKey, ServeSettings

PREFIX: Final = "perennial_"
ADMIN: Final = "admin"
READ: Final = "read"
#: What the calls that are more than reading need; every other path is `READ`.
SCOPES: Final = {
    "/v1/predict": "predict",
    "/v1/predict/batch": "predict",
    "/classify": "predict",
    "/v1/feedback": "feedback",
    "/v1/models/{version}/promote": ADMIN,
    "/v1/rollback": ADMIN,
}
#: Captured images may show people: until a key guards them they answer this machine only.
IMAGES: Final = frozenset({"/v1/images/{prediction_id}", "/v1/references/{version}/{digest}", "/v1/labels/queue"})
#: Where the Edge leaves the name of the key in the ASGI scope, None without one.
CALLER: Final = "perennial.caller"

Headers = Mapping[bytes, bytes]

# A proxy on this machine adds these: the client behind it is somewhere else.
_FORWARDED: Final = (b"x-forwarded-for", b"x-forwarded-host", b"forwarded", b"x-real-ip", b"via")
_HOST: Final = re.compile(rb"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9.-]+))(?::\d{1,5})?")
_BEARER: Final = b"bearer "


def new_key() -> str:
    """256 random bits, with a prefix that scanners for leaked secrets can find."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str | bytes) -> str:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


class Keyring:
    """The keys of the settings, and which paths they guard.

    A scope is guarded as soon as one key names it, even an expired one: a service never opens because a key ended.
    Reads (`/v1/model`, `/v1/status`, `/v1/events`, the documentation) are guarded as soon as `predict` is, and any
    key opens them. `paths` are all there are.
    """

    def __init__(self, serve: ServeSettings, paths: frozenset[str]) -> None:
        self._keys = [(key.sha256.encode(), key) for key in serve.keys]
        named = {scope for key in serve.keys for scope in key.scopes}
        self._admin_key = ADMIN in named
        self._needs: dict[str, str] = {}
        for path in paths:
            scope = SCOPES.get(path, READ)
            guarded = scope == ADMIN or scope in named or (scope == READ and "predict" in named)
            if guarded and path not in serve.keys_exempt and not _holds_no_data(path):
                self._needs[path] = scope

    def guards(self, path: str) -> bool:
        """Whether a call to this path must bring a key."""
        return path in self._needs and (self._needs[path] != ADMIN or self._admin_key)

    def admit(self, scope: Mapping[str, Any], headers: Headers, path: str) -> str | None:
        """Let a call through; returns the name of its key, None without one. Looks at the header only.

        Raises:
            Unauthorized: no key, or one that is not known or has expired.
            Forbidden: the key does not allow this; or there is no key for admin calls, or for captured images, and the
                call is not from this machine.
            InvalidParameter: the body of an admin call is not declared as JSON; a page in a browser could send such a
                call from anywhere.
        """
        need = self._needs.get(path)
        if need is None:
            found = self._find(headers) if self._keys else None
            if found is None and path in IMAGES and not _from_this_machine(scope, headers):
                raise Forbidden(
                    "captured images answer this machine only until there is a key for them; "
                    "make one: perennial keys create --name NAME --scope predict"
                )
            return found.name if found else None
        name = None
        if need != ADMIN or self._admin_key:
            name = self._holder(headers, need)
        elif not _from_this_machine(scope, headers):
            raise Forbidden(
                "admin calls answer this machine only until there is a key for them; "
                "make one: perennial keys create --name NAME --scope admin"
            )
        if need == ADMIN and headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise InvalidParameter("send the body as application/json")
        return name

    def _holder(self, headers: Headers, need: str) -> str:
        key = self._find(headers)
        if key is None:
            if b"authorization" in headers or b"x-api-key" in headers:
                raise Unauthorized("this key is not known here; send `Authorization: Bearer KEY` or `X-API-Key: KEY`")
            raise Unauthorized("this call needs a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        if key.expires is not None and key.expires <= datetime.now(UTC):
            raise Unauthorized(f"the key {key.name} expired at {key.expires.isoformat()}; ask for a new one")
        if need != READ and need not in key.scopes and ADMIN not in key.scopes:
            raise Forbidden(f"the key {key.name} allows {', '.join(key.scopes)}; this call needs {need}")
        return key.name

    def _find(self, headers: Headers) -> ApiKey | None:
        sent = headers.get(b"authorization", b"")
        sent = sent[len(_BEARER) :].strip() if sent[: len(_BEARER)].lower() == _BEARER else b""
        sent = sent or headers.get(b"x-api-key", b"")
        if not sent:
            return None
        digest = digest_of(sent).encode()
        found = None
        for known, key in self._keys:  # no early exit: how long it takes says nothing about which key matched
            if hmac.compare_digest(known, digest):
                found = key
        return found


def asked(serve: ServeSettings) -> dict[str, bool]:
    """Which kinds of calls ask for a key: `read`, `predict`, `feedback`, `admin`."""
    of_scope = {READ: "/v1/overview", "predict": "/v1/predict", "feedback": "/v1/feedback", ADMIN: "/v1/rollback"}
    keyring = Keyring(serve, frozenset(of_scope.values()))
    return {scope: keyring.guards(path) for scope, path in of_scope.items()}


def actor_of(scope: Mapping[str, Any]) -> str:
    """Who makes an admin call, for the audit trail.

    Raises:
        Forbidden: the call did not come through the Edge, so nobody has looked at its key.
    """
    if CALLER not in scope:
        raise Forbidden("this call must come through the service's own front door")
    address = address_of(scope)
    return f"http {address}" if scope[CALLER] is None else f"key {scope[CALLER]}, http {address}"


def address_of(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def _from_this_machine(scope: Mapping[str, Any], headers: Headers) -> bool:
    if not _is_loopback(address_of(scope)) or any(name in headers for name in _FORWARDED):
        return False
    if sum(name == b"host" for name, _ in scope["headers"]) != 1:
        return False
    # Against DNS rebinding: a name of somebody else's that points here is not this machine's name.
    host = headers[b"host"]
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    # A page says where it is from; only one of the service's own may make admin calls.
    origin = headers.get(b"origin")
    if origin is not None and origin.partition(b"://")[2].lower() != host.lower():
        return False
    name = (match["name"] or match["address"]).decode("ascii").lower()
    return name == "localhost" or _is_loopback(name)


def _holds_no_data(path: str) -> bool:
    """The operations page and its script: a browser opens them before it can send a key."""
    return path == "/ops" or path.startswith("/ops/")


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
