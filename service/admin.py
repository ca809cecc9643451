"""Who may promote and roll back."""

from __future__ import annotations

import hmac
import ipaddress
import re
from typing import Final

from starlette.requests import Request

from perennial.errors import Forbidden, InvalidParameter, Unauthorized

# A proxy on this machine adds these: the client behind it is somewhere else.
_FORWARDED: Final = ("x-forwarded-for", "x-forwarded-host", "forwarded", "x-real-ip", "via")
_HOST: Final = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9.-]+))(?::\d{1,5})?")


def authorize(request: Request, admin_key: str) -> str:
    """Let an admin call through, and say who made it, for the audit trail.

    With a key configured the call must bring it as `Authorization: Bearer KEY`. Without one it must come straight
    from this machine.

    Raises:
        Unauthorized: no key, or not the right one.
        Forbidden: there is no key, and the call is not from this machine.
        InvalidParameter: the body is not declared as JSON; a page in a browser could send such a call from anywhere.
    """
    address = request.client.host if request.client else "unknown"
    if admin_key:
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not sent:
            raise Unauthorized("send the admin key: Authorization: Bearer KEY")
        if not hmac.compare_digest(sent.strip().encode(), admin_key.encode()):
            raise Unauthorized("this is not the admin key")
    elif not (_is_loopback(address) and _names_this_machine(request)) or _proxied(request):
        raise Forbidden(
            "admin calls answer this machine only until a key is set: serve.admin_key, or $PERENNIAL_SERVE__ADMIN_KEY"
        )
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise InvalidParameter("send the body as application/json")
    return f"http {address}"


def _proxied(request: Request) -> bool:
    return any(name in request.headers for name in _FORWARDED)


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def _names_this_machine(request: Request) -> bool:
    # Against DNS rebinding: a name of somebody else's that points here is not this machine's name.
    # Read from the header itself: a host that Starlette cannot parse becomes the server's own address there.
    match = _HOST.fullmatch(request.headers.get("host", ""))
    if match is None:
        return False
    host = (match["name"] or match["address"]).lower()
    return host == "localhost" or _is_loopback(host)
