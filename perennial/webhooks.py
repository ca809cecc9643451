"""Outgoing webhooks: what is sent of an event, signed, and what the receiver says to it.

Signed by the Standard Webhooks specification, version 1.0.0 (github.com/standard-webhooks/standard-webhooks). The body
has `text`, which Slack and Mattermost show, and the event itself. Neither a URL nor a secret is ever in a message of
this module.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from perennial.event_wording import sentence
from perennial.json_body import json_body
from perennial.ledger.events import Event
from perennial.settings_sections import NotifySettings

#: Their incoming webhooks promise to take `text`, not what else is in a body.
_SLACK: Final = ("hooks.slack.com", "hooks.slack-gov.com")
_MOST_ANSWER_BYTES: Final = 2_000
_MOST_ANSWER_SHOWN: Final = 200
_LONGEST_PAUSE_ASKED: Final = 3600.0
#: With these a receiver says that the same request may do later: request timeout, too early, too many requests.
_LATER: Final = (408, 425, 429)

Outcome = Literal["delivered", "retry", "refused"]


@dataclass(frozen=True, slots=True)
class Webhook:
    """A receiver. `key` is what the ledger knows it by; `shown` what people are told."""

    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)
    timeout: float

    @property
    def key(self) -> str:
        return hashlib.sha256(self.url.encode()).hexdigest()

    @property
    def shown(self) -> str:
        """`https://hooks.slack.com (3f2a9c1d)`: where, and the beginning of the URL's sha256; its path is a secret."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]  # without a name and a password
        return f"{parts.scheme}://{host} ({self.key[:8]})"


@dataclass(frozen=True, slots=True)
class Message:
    """`id` is the same however often it is sent, so that a receiver can tell it has it."""

    id: str
    text: str
    rest: dict[str, Any]

    def body(self, webhook: Webhook) -> bytes:
        """Slack's is the text alone. Elsewhere there is no `type`, which means something else to Mattermost."""
        if urlsplit(webhook.url).hostname in _SLACK:
            # Unescaped, a label such as <!channel> would ring everybody.
            text = self.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            return json_body({"text": text})
        # An invisible sign after each @, so that no name in it rings anybody.
        return json_body({"text": self.text.replace("@", "@\u200b"), **self.rest})


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one attempt. `status` is None where there was no HTTP answer; `pause` the seconds until the next
    attempt that the receiver asked for."""

    outcome: Outcome
    status: int | None
    said: str
    pause: float = 0.0

    def __str__(self) -> str:
        return " ".join(str(part) for part in (self.status, self.said) if part)


def configured(notify: NotifySettings) -> tuple[Webhook, ...]:
    """Each webhook of the settings once."""
    secrets = tuple(notify.secret.get_secret_value().split())
    urls = dict.fromkeys(url.get_secret_value() for url in notify.webhooks)
    return tuple(Webhook(url, secrets, notify.timeout) for url in urls)


def message_of(event: Event) -> Message:
    """What is sent of an event."""
    # Of what never changes: the same after a crash, and no other ledger's event 12 has it.
    unique = hashlib.sha256(f"{event.name}\n{event.id}\n{event.at.isoformat()}".encode()).hexdigest()
    return Message(f"evt_{unique[:32]}", sentence(event), {"name": event.name, "event": event.document()})


def trial_of(name: str, at: datetime) -> Message:
    """A message that tells of nothing, to see whether a webhook works."""
    unique = hashlib.sha256(f"{name}\n{at.isoformat()}".encode()).hexdigest()
    text = f"{name}: a test message of Perennial. Nothing has happened; events will look like this."
    return Message(f"test_{unique[:32]}", text, {"name": name, "event": None})


def signed_headers(message_id: str, body: bytes, secrets: Sequence[str], seconds: int) -> dict[str, str]:
    """The specification's headers, at so many `seconds` since 1970; without a secret there is no signature."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(seconds)}
    signed = f"{message_id}.{seconds}.".encode() + body
    if secrets:
        keys = (base64.b64decode(secret.removeprefix("whsec_")) for secret in secrets)
        digests = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)
        headers["webhook-signature"] = " ".join(f"v1,{digest}" for digest in digests)
    return headers


def send(webhook: Webhook, message: Message) -> Answer:
    """Send it once; takes `webhook.timeout` seconds at most. Does not raise for anything that the network or the
    receiver does. Redirects are not followed: they would carry what is sent to where nobody configured."""
    return asyncio.run(_send(webhook, message))


async def _send(webhook: Webhook, message: Message) -> Answer:
    import httpx  # only where something is sent

    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # below it they log the URL
    body = message.body(webhook)
    headers = {
        "content-type": "application/json",
        "user-agent": "Perennial",
        **signed_headers(message.id, body, webhook.secrets, int(time.time())),
    }
    try:
        # httpx bounds each single read, so an answer that drips in would never end without this.
        async with (
            asyncio.timeout(webhook.timeout),
            httpx.AsyncClient(timeout=None, follow_redirects=False, verify=_authorities()) as client,  # noqa: S113
            client.stream("POST", webhook.url, content=body, headers=headers) as response,
        ):
            said = b""
            async for part in response.aiter_raw(_MOST_ANSWER_BYTES):
                said += part
                if len(said) >= _MOST_ANSWER_BYTES:
                    break
    except TimeoutError:
        return Answer("retry", None, f"no answer within {webhook.timeout:g} seconds")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        # Its text may quote the URL, so its kind has to do; what lies under it is the operating system's.
        cause = error.__cause__.__cause__ if error.__cause__ else None
        return Answer("retry", None, f"{type(error).__name__}{f' ({cause})' if isinstance(cause, OSError) else ''}")
    status = response.status_code
    if 200 <= status < 300:
        return Answer("delivered", status, _excerpt(said, webhook))
    if status in _LATER or status >= 500:
        return Answer("retry", status, _excerpt(said, webhook), _pause(response.headers.get("retry-after", "")))
    said = b"a redirect, which is not followed" if 300 <= status < 400 else said
    return Answer("refused", status, _excerpt(said, webhook))


@cache
def _authorities() -> ssl.SSLContext:
    """Whom TLS trusts; reading them takes longer than sending."""
    import httpx

    return httpx.create_ssl_context()


def _excerpt(said: bytes, webhook: Webhook) -> str:
    """The beginning of an answer on one line. Should the receiver quote its URL or a secret, it is left out."""
    text = said.decode("utf-8", "replace")
    for hidden in (webhook.url, urlsplit(webhook.url).path, *webhook.secrets):
        if len(hidden) > 1:
            text = text.replace(hidden, "…")
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return line if len(line) <= _MOST_ANSWER_SHOWN else f"{line[: _MOST_ANSWER_SHOWN - 1]}…"


def _pause(retry_after: str) -> float:
    """Seconds, of a `Retry-After` in either of its forms (RFC 9110, 10.2.3); 0 where it says nothing."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after).astimezone(UTC) - datetime.now(UTC)).total_seconds()
        except ValueError:
            return 0.0
    return min(max(0.0, seconds), _LONGEST_PAUSE_ASKED) if seconds == seconds else 0.0
