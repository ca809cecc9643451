"""Which runtime and precision a bundle is served in."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from perennial.bundle import Manifest
from perennial.errors import InvalidSettings
from perennial.graph import FLOAT32, available_precisions, fastest_runtime
from perennial.settings_sections import ServeSettings

#: Another precision must be so many times as fast as float32 to be worth it: less is the noise of measuring.
WORTH: Final = 1.1


def native(runtime: str | None) -> tuple[str, tuple[str, ...]]:
    """The runtime of that name, None for the fastest, and the precisions it computes in natively on this machine.

    Raises:
        InvalidSettings: it is not installed.
    """
    chosen = runtime or fastest_runtime()
    return chosen, available_precisions(chosen)


def choose(
    manifest: Manifest, serve: ServeSettings, native: Callable[[str | None], tuple[str, Collection[str]]] = native
) -> tuple[str, str]:
    """The runtime and the precision that `serve.runtime` and `serve.precision` come to for a bundle on this machine.
    `native` says what the machine can do; another process may answer for it.

    `auto` precision is the fastest by the bundle's certificates, among those that the processor computes in natively;
    float32 if none is clearly faster. A bundle without certificates is served in float32.

    Raises:
        InvalidSettings: the runtime is not installed, or the precision asked for is not certified or not native.
    """
    runtime, able = native(None if serve.runtime == "auto" else serve.runtime)
    if serve.precision == "auto":
        return runtime, _fastest(manifest, able)
    if serve.precision not in manifest.precisions:
        raise InvalidSettings(
            f"serve.precision is {serve.precision}, but version {manifest.version} is certified for "
            f"{', '.join(manifest.precisions)} only ({_why_not(manifest, serve.precision)}); set serve.precision to "
            "auto or to one of these"
        )
    if serve.precision not in able:
        raise InvalidSettings(
            f"serve.precision is {serve.precision}, which {runtime} does not compute natively on this machine (it does "
            f"in: {', '.join(able)}); set serve.precision to auto"
        )
    return runtime, serve.precision


def _fastest(manifest: Manifest, able: Collection[str]) -> str:
    speeds = {
        precision: certificate.images_per_second
        for precision, certificate in manifest.certificates.items()
        if precision in manifest.precisions and precision in able
    }
    fastest = max(speeds, key=speeds.__getitem__, default=FLOAT32)
    return fastest if speeds.get(fastest, 0.0) >= WORTH * speeds.get(FLOAT32, 0.0) else FLOAT32


def _why_not(manifest: Manifest, precision: str) -> str:
    certificate = manifest.certificates.get(precision)
    if certificate is None:
        return f"its training did not try {precision}: the processor lacks it, or no setting asked for it"
    return certificate.why
