"""What `perennial retrain` would do now, and why. Reads ledger, folders and the weights file; writes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from perennial.bundle import Manifest
from perennial.errors import InvalidDataset, WeightsUnavailable
from perennial.ledger import deployments, leases, models
from perennial.ledger.leases import Held
from perennial.ledger.new_classes import NewLabels
from perennial.ledger.requests import open_request
from perennial.settings import Settings
from perennial.storage import sha256_of_file
from training import backbones, captures, due
from training.captures import Captures
from training.challenger import next_strategy
from training.listing import list_folder, list_manifest
from training.material import REFERENCE_ROWS
from training.retrain import lease_name
from training.situation import fresh_since, new_labels_of, read_situation
from training.trial import labels_needed


@dataclass(frozen=True, slots=True)
class Data:
    """The original training data as listed; no file is opened. `why` says what is wrong where it is not `found`."""

    location: str
    found: bool
    images: int
    classes: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Weights:
    """The pretrained checkpoint. `matches`: it is the one the champion was made from. One of torchvision's own that is
    not `found` would be downloaded."""

    source: str
    path: str | None
    sha256: str
    expected: str
    found: bool
    matches: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision and its evidence. `obstacles` are what keeps a retrain from running now, each with what to do."""

    name: str
    live: str
    deployed_at: datetime
    decision: due.Decision
    request: int | None
    labelled: Captures
    new: NewLabels
    needed: int
    cooldown: float
    lease: Held | None
    data: Data
    weights: Weights
    manifest: Manifest
    judged_share: float

    @property
    def obstacles(self) -> tuple[str, ...]:
        found = []
        if not self.decision.due:
            found.append(f"nothing asks for it: {self.decision.why}")
        missing = self.needed - len(self.labelled.fresh)
        if missing > 0:
            found.append(
                f"{len(self.labelled.fresh)} fresh labelled captures of {self.needed} needed: label {missing} more"
            )
        if self.lease is not None:
            found.append(f"{self.lease.holder} is retraining it now")
        found += [one.why for one in (self.data, self.weights) if one.why]
        return tuple(found)

    @property
    def runs(self) -> bool:
        return not self.obstacles

    @property
    def exit_code(self) -> int:
        return 0 if self.runs else 4

    def document(self) -> dict[str, Any]:
        """The plan as JSON."""
        labelled, manifest = self.labelled, self.manifest
        fresh = len(labelled.fresh)
        return {
            "dry_run": True,
            "runs": self.runs,
            "name": self.name,
            "why": self.decision.why if self.runs else "; ".join(self.obstacles),
            "obstacles": list(self.obstacles),
            "decision": {
                "due": self.decision.due,
                "trigger": self.decision.trigger,
                "why": self.decision.why,
                "request": self.request,
                "triggers": [asdict(asked) for asked in self.decision.asked],
            },
            "model": {"version": self.live, "deployed_at": self.deployed_at.isoformat()},
            "labels": {
                "fresh": fresh,
                "older": len(labelled.older),
                "left_out": dict(Counter(skip.reason for skip in labelled.skipped)),
                "needed": self.needed,
                "missing": max(0, self.needed - fresh),
                "new_classes": self.new.classes,
                "too_few": self.new.too_few,
            },
            "cooldown": {"seconds": self.cooldown, "left": round(self.decision.cooldown_left, 1)},
            "lease": None
            if self.lease is None
            else {"holder": self.lease.holder, "until": self.lease.until.isoformat()},
            "data": asdict(self.data),
            "weights": asdict(self.weights),
            "training": {
                "backbone": manifest.backbone,
                "strategy": next_strategy(manifest),
                "image_size": manifest.input.crop,
                "original_images": self.data.images,
                "older_captures": len(labelled.older),
                "fresh_captures": fresh,
                "judged_on": round(self.judged_share * fresh),
                "reference": "fresh" if fresh >= REFERENCE_ROWS else "original and fresh",
            },
        }


def plan(engine: sa.Engine, settings: Settings, *, if_due: bool) -> Plan:
    """What `retrain` with the same arguments would do now. Captured images are not read: whether each of them still is
    what was predicted on shows only then.

    Raises:
        NoLiveModel: there is nothing to retrain.
        LedgerUnavailable: see `perennial.errors`.
    """
    name = settings.name
    live = deployments.live(engine, name)
    manifest = models.get(engine, name, live.version).manifest
    request = open_request(engine, name)
    new = new_labels_of(engine, settings, live.version)
    return Plan(
        name=name,
        live=live.version,
        deployed_at=live.at,
        decision=due.decide(read_situation(engine, settings, by_hand=not if_due), settings.retrain),
        request=request.id if request is not None else None,
        labelled=captures.find(
            engine,
            name,
            live.version,
            window=settings.monitor.window,
            classes=manifest.classes,
            since=fresh_since(engine, name, request, by_hand=not if_due),
            new=new,
        ),
        new=new,
        needed=labels_needed(settings),
        cooldown=settings.retrain.cooldown,
        lease=next((held for held in leases.holders(engine, lease_name(name)) if held.name == lease_name(name)), None),
        data=_data(settings.retrain.data or manifest.dataset.location),
        weights=_weights(manifest),
        manifest=manifest,
        judged_share=settings.retrain.fresh_holdout,
    )


def _data(location: str) -> Data:
    path = Path(location).expanduser().absolute()
    try:
        if not path.exists():
            raise InvalidDataset(f"the original training data is not at {path}: put it back, or set retrain.data")
        listing = list_folder(path) if path.is_dir() else list_manifest(path)
    except (InvalidDataset, OSError) as error:
        return Data(str(path), False, 0, 0, str(error))
    if not listing.entries:
        return Data(str(path), False, 0, len(listing.classes), f"{path} holds no files")
    return Data(str(path), True, len(listing.entries), len(listing.classes))


def _weights(manifest: Manifest) -> Weights:
    source, expected = manifest.pretrained.source, manifest.pretrained.sha256
    try:
        path = backbones.at_hand(manifest.backbone, source)
    except WeightsUnavailable as error:
        return Weights(source, None, "", expected, found=False, matches=False, why=str(error))
    if path is not None and not path.is_file():
        return Weights(source, str(path), "", expected, found=False, matches=False)
    found = "" if path is None else sha256_of_file(path)
    matches = found == expected
    why = "" if matches else f"{path} has sha256 {found}, but the live model was made from {expected}: put that back"
    return Weights(source, str(path) if path else None, found, expected, found=True, matches=matches, why=why)
