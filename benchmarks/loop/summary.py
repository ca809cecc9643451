"""What the streams came to, and whether Perennial is where it should be."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Final

from benchmarks.loop.arms import EVERY, PERENNIAL
from benchmarks.loop.play import Played
from benchmarks.loop.streams import QUIET

_LESS: Final = 0.01  # of accuracy that Perennial may lie below any alternative
_COMPUTE: Final = 1 / 3  # of what `every window` takes


def summary(played: Sequence[Played]) -> list[str]:
    """Lines: a table of every stream, the mean over its seeds, and its targets."""
    lines = []
    for stream in dict.fromkeys(each.stream for each in played):
        of_stream = [each for each in played if each.stream == stream]
        lines.append(f"{stream}:")
        for arm in dict.fromkeys(each.arm for each in of_stream):
            rows = [each for each in of_stream if each.arm == arm]
            lines.append(
                f"  {arm:12} accuracy {_of(rows, 'mean_accuracy'):.3f}  retrains {_of(rows, 'retrains'):5.1f}  bad "
                f"deployments {_of(rows, 'bad_deployments'):.1f} of {_of(rows, 'deployments'):.1f}  labels used "
                f"{_of(rows, 'labels_used'):6.0f}  compute {_of(rows, 'compute_seconds'):6.0f} s"
                + (f" (one window in {rows[0].every} was measured)" if rows[0].every > 1 else "")
            )
        lines += _targets(stream, of_stream)
    return lines


def _targets(stream: str, played: Sequence[Played]) -> list[str]:
    mine = [each for each in played if each.arm == PERENNIAL]
    others = [each for each in played if each.arm != PERENNIAL]
    if not mine or not others:
        return []
    if stream == QUIET:
        most = mean(each.windows for each in mine) / 100
        met = _of(mine, "bad_deployments") == 0 and _of(mine, "retrains") <= most
        return [f"  no bad deployment, and at most one retrain in 100 windows: {'yes' if met else 'NO'}"]
    arms = dict.fromkeys(each.arm for each in others)
    best = max(arms, key=lambda arm: _of([each for each in others if each.arm == arm], "mean_accuracy"))
    behind = _of([each for each in others if each.arm == best], "mean_accuracy") - _of(mine, "mean_accuracy")
    lines = [f"  behind {best} by {behind:+.3f}, at most {_LESS}: {'yes' if behind <= _LESS + 1e-9 else 'NO'}"]
    every = [each for each in others if each.arm == EVERY]
    if every:
        share = _of(mine, "compute_seconds") / _of(every, "compute_seconds")
        lines.append(f"  {share:.2f} of the compute of '{EVERY}', at most .33: {'yes' if share <= _COMPUTE else 'NO'}")
    return lines


def _of(rows: Sequence[Played], name: str) -> float:
    return mean(getattr(row, name) for row in rows)
