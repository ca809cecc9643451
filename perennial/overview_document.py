"""What `GET /v1/overview` answers, part by part. `perennial.overview` fills these, and the OpenAPI document is made of
them: there is no other description that could part from what is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from perennial.bundle import Estimate
from perennial.ledger.events import EventKind

Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

Tone = Literal["good", "caution", "bad"]
ModelState = Literal["none", "unchecked", "healthy", "suspected", "drifting", "retraining"]
Status = Literal["live", "rolling out", "stopped", "waiting", "refused", "replaced", "rolled back", "never live"]


@dataclass(frozen=True, slots=True)
class State:
    """Whether somebody has to do something. `stale`: images come in, and nobody checks them."""

    tone: Tone
    model_state: ModelState
    since: Moment | None
    stale: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class LiveModel:
    """The live version. `accuracy_held_out` is of the held-out images of its training."""

    version: str
    deployed_at: Moment
    reason: str
    actor: str
    backbone: str
    classes: list[str]
    accuracy_held_out: Estimate | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Images answered, and images that could not be read, in each span of time from `start` on."""

    start: Moment
    bucket_seconds: Annotated[int, Field(ge=60)]
    answered: list[Count]
    rejected: list[Count]


@dataclass(frozen=True, slots=True)
class ListedCheck:
    """A check in a row of many. `withheld` says why there is no estimate; `scores` are by family."""

    id: int
    at: Moment
    version: str
    verdict: str
    rows: Count
    labelled: Count
    accuracy_labels: Estimate | None
    accuracy_estimated: Estimate | None
    withheld: str | None
    scores: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class ListedDeployment:
    """A deployment in a row of many; `rolled_back` is one by which somebody went back."""

    id: int
    at: Moment
    version: str
    reason: str
    actor: str
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class Cause:
    """What a check holds responsible, and the columns that show it."""

    cause: str
    why: str
    columns: list[str]


@dataclass(frozen=True, slots=True)
class CheckedWindow:
    """The images a check looked at."""

    rows: Count
    start: Moment | None
    end: Moment | None


@dataclass(frozen=True, slots=True)
class FamilyScore:
    """How far a family of columns has drifted; from `floor` on it counts. `skipped` says why it was not tested."""

    score: float | None
    alarm: bool
    floor: float | None
    skipped: str | None


@dataclass(frozen=True, slots=True)
class Accuracies:
    """What a check knows of accuracy. `labels` is null where there are too few of them, `reference` is of the held-out
    images, `withheld` says why there is no estimate."""

    labels: Estimate | None
    labelled: Count
    estimated: Estimate | None
    reference: Estimate | None
    withheld: str | None


@dataclass(frozen=True, slots=True)
class RetrainAdvice:
    """Whether a retrain is due, and why or why not."""

    due: bool
    why: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A reference image; `image` is the path of its picture."""

    digest: str
    label: str | None
    predicted: str
    image: str


@dataclass(frozen=True, slots=True)
class Example:
    """An image that shows what a check found, beside the reference images it is most like. `drift` is the share of
    those that look less like the window; `stands_out` a property, and by how many standard deviations."""

    prediction_id: str
    why: str
    drift: Share
    predicted: str
    confidence: Share
    label: str | None
    stands_out: tuple[str, float] | None
    image: str
    nearest: list[Neighbour]


@dataclass(frozen=True, slots=True)
class LatestCheck:
    """The latest check of the live version; `report`: Evidently's report of it is kept."""

    id: int
    at: Moment
    version: str
    verdict: str
    state: str | None
    causes: list[Cause]
    window: CheckedWindow
    families: dict[str, FamilyScore]
    accuracy: Accuracies | None
    retrain: RetrainAdvice | None
    report: bool
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class OpenWatch:
    """The live model beside the one it replaced. `rows` of the `labelled` images are those on which both can be
    compared; at `of` of them the watch ends."""

    compared_with: str
    of: Count
    labelled: Count
    rows: Count
    live: Estimate
    before: Estimate
    only_live: Count
    only_before: Count


@dataclass(frozen=True, slots=True)
class OpenRollout:
    """A challenger that goes live in stages. `stage` in words is number `number` of `stages`; the challenger answers
    `share` of the traffic, and has answered `answered` different images in this stage, of `of` that it needs; counted
    are its first answers, twice as many and at most 2,000. In the shadow it said the same as the champion on `agreed`
    of them. `faults`: it failed to answer."""

    version: str
    champion: str
    stage: str
    number: Annotated[int, Field(ge=1)]
    stages: Annotated[int, Field(ge=1)]
    share: Share
    since: Moment
    answered: Count
    of: Count
    agreed: Count | None
    faults: Count


@dataclass(frozen=True, slots=True)
class NewLabels:
    """Labels that are no class yet, each with the images that have it; those in `classes` are learnt by the next
    retrain."""

    images: dict[str, Count]
    needed: Count
    classes: list[str]


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model in a row of many; `accuracy` is of the held-out images of its training."""

    version: str
    created_at: Moment
    parent: str | None
    live: bool
    status: Status
    strategy: str
    accuracy: Estimate | None
    why: str


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """An event in words."""

    id: int
    at: Moment
    kind: EventKind
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at a glance."""

    name: str
    at: Moment
    state: State
    live: LiveModel | None
    traffic: Traffic
    checks: list[ListedCheck]
    deployments: list[ListedDeployment]
    check: LatestCheck | None
    watch: OpenWatch | None
    rollout: OpenRollout | None
    new_labels: NewLabels
    models: list[ListedModel]
    events: list[ListedEvent]


_SHAPE: Final = TypeAdapter(Overview)


def plain(overview: Overview) -> dict[str, Any]:
    """As dictionaries, lists and values of JSON."""
    found: dict[str, Any] = _SHAPE.dump_python(overview)
    return found


def schemas(place: str) -> dict[str, dict[str, Any]]:
    """JSON Schemas of the overview and of each of its parts, by name; `place` is how they refer to one another, such as
    `#/components/schemas/{model}`."""
    whole = _SHAPE.json_schema(mode="serialization", ref_template=place)
    parts = whole.pop("$defs")
    found: dict[str, dict[str, Any]] = _untitled({**parts, "Overview": whole})
    return found


def _untitled(schema: Any) -> Any:
    """Without the titles that only repeat each name in capitals."""
    if isinstance(schema, list):
        return [_untitled(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _untitled(each) for name, each in value.items()} if key == "properties" else _untitled(value)
        for key, value in schema.items()
        if key != "title"
    }
