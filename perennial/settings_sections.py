"""The sections of the settings: every field, its default, its bounds, and what it means."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from perennial import schedule

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _is_a_schedule(expression: str) -> str:
    if expression:
        schedule.check(expression)
    return expression


Schedule = Annotated[str, AfterValidator(_is_a_schedule)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainSettings(Section):
    """How a labelled folder becomes a bundle."""

    backbone: str = Field(
        "mobilenet_v3_small",
        description="A torchvision classification model, by name; `auto` ranks those whose weights are at hand "
        "(`weights` may then be a folder of files named by backbone).",
    )
    weights: str = Field(
        "default",
        description="`default` (torchvision's own, downloaded by torchvision), `builtin` (ships with Perennial), "
        "`none` (random, on purpose), or the path of a local `.pth` or `.safetensors` file.",
    )
    strategy: Literal["auto", "majority", "simple", "knn", "linear_probe", "partial", "full", "scratch"] = Field(
        "auto",
        description="The rung of the ladder. `auto` climbs and picks; `majority` always says the commonest class, "
        "`simple` is a linear model on colours and tiny pixels without any network, `knn` asks the most similar "
        "training images; `linear_probe` trains only a new head, `partial` the last stages as well, `full` every "
        "layer, `scratch` the same network from random weights.",
    )
    budget: float = Field(
        300.0, gt=0, description="Seconds that `auto` may spend on choosing; a strategy asked for is not bound by it."
    )
    target: str = Field(
        "",
        description="A folder of unlabelled images from where the model will be used; a linear probe is aligned to "
        "them (CORAL). Its classes should be about as common as in the training data.",
    )
    teacher: str = Field(
        "",
        description="A larger network, NAME or NAME:WEIGHTS, from which the backbone learns on the training images "
        "first (relational distillation).",
    )
    image_size: int = Field(
        0,
        ge=0,
        le=1024,
        description="Side of the square the network sees, in pixels; 0 takes the backbone's own.",
    )
    validation: Fraction = Field(
        0.15, description="Share of the images kept for choosing regularisation and temperature."
    )
    test: Fraction = Field(0.15, description="Share of the images kept for the reported metrics.")
    seed: int = Field(0, ge=0, description="Makes splits and training repeatable.")
    threads: int = Field(0, ge=0, description="Processor threads for training; 0 takes every core.")
    int8: bool = Field(
        False,
        description="Quantise the graph to 8-bit integers as well, and certify it (extra `int8`: NNCF).",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="What networks are fine-tuned on; `auto` is a GPU where there is one."
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = Field(
        "auto",
        description="What networks are fine-tuned in, in Lightning Fabric's words; `auto` is bfloat16 where the "
        "processor or GPU has it.",
    )
    log: Literal["none", "csv", "tensorboard"] = Field(
        "none",
        description="Where each epoch's numbers go beside the report: a file in `logs` in `home`, as CSV or in "
        "TensorBoard's format (extra `tensorboard`).",
    )


Scope = Literal["predict", "feedback", "admin"]
ReadPath = Literal[
    "/",
    "/docs.json",
    "/schema.json",
    "/livez",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/model",
    "/v1/status",
    "/v1/events",
    "/v1/overview",
    "/v1/labels/queue",
    "/v1/images/{prediction_id}",
    "/v1/references/{version}/{digest}",
]
Origin = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^/\s,\"*?#@]+$")]


class ApiKey(Section):
    """A key as the settings hold it: not the key, but its sha256. The key is 256 random bits, which nobody can guess
    from its digest, so it needs none of the slow hashing that a password does."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="What the logs and the audit trail call its holder."
    )
    scopes: list[Scope] = Field(
        min_length=1, description="What it allows: `predict`, `feedback`; `admin` allows everything."
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="The digest of the key, in lower-case hexadecimal.")
    expires: AwareDatetime | None = Field(None, description="When it ends, with a time zone; never unless given.")


class ServeSettings(Section):
    """The HTTP service."""

    host: str = Field("127.0.0.1", description="Address to listen on; the container listens on all.")
    port: int = Field(3000, ge=1, le=65535, description="Port to listen on.")
    workers: int = Field(1, ge=1, le=256, description="Server processes. One is best on up to four cores.")
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="Threads a worker decodes and infers in; 0 is its share of the cores and one more.",
    )
    runtime: Literal["auto", "openvino", "onnxruntime"] = Field(
        "auto",
        description="What runs the graph. `auto` is ONNX Runtime where it is installed with CUDA (extra `gpu`) and "
        "sees a GPU, else OpenVINO.",
    )
    precision: Literal["auto", "float32", "bfloat16", "int8"] = Field(
        "auto",
        description="What the graph computes in: one that the model is certified for. `auto` is the fastest of those "
        "that this processor has; ONNX Runtime has float32 only.",
    )
    max_bytes: int = Field(
        32 * 2**20, ge=1, description="Largest image accepted, in bytes; a larger one is answered with 413."
    )
    max_pixels: int = Field(
        50_000_000,
        ge=1,
        description="Largest image accepted, in pixels, read from the header before decoding.",
    )
    batching: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether images of several requests are inferred together; `auto` does it on a GPU, where alone "
        "it pays.",
    )
    batch_images: int = Field(32, ge=1, le=1024, description="Most images inferred together.")
    batch_window: float = Field(
        0.002, ge=0, le=1, description="Seconds an idle GPU waits for more images before it begins."
    )
    max_batch: int = Field(64, ge=1, le=1024, description="Most images in one `/v1/predict/batch` request.")
    max_queue: int = Field(
        256,
        ge=1,
        description="Most images a worker holds at once; past it the answer is 503 with `Retry-After`.",
    )
    max_queue_bytes: int = Field(
        512 * 2**20,
        ge=1,
        description="Most bytes of images, as they were sent, that a worker holds at once; past it the answer is 503. "
        "At least `max_bytes`.",
    )
    timeout: float = Field(30.0, gt=0, description="Seconds until a request is answered with 504.")
    swap_interval: float = Field(
        1.0, gt=0, description="Seconds between looks at the ledger for a newly deployed model."
    )
    capture: Literal["all", "uncertain"] | Fraction = Field(
        "all",
        description="Which images are kept in storage, for labelling and retraining: `all`, a share of them "
        "(0..1; 0 keeps none), or the `uncertain` ones.",
    )
    uncertain_below: Fraction = Field(0.8, description="Confidence below which `capture = uncertain` keeps an image.")
    capture_backlog_bytes: int = Field(
        2**30, ge=0, description="Most bytes of images that wait on local disk while the storage is away."
    )
    min_free_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="Room left on the disk of `home`: with less, predictions are answered with 503 because they "
        "cannot be recorded. Captures end at twice this.",
    )
    drain_timeout: float = Field(
        20.0,
        ge=1,
        le=28,  # BentoML kills a worker that has not ended after 30 seconds
        description="Seconds in which a server that is told to stop ends: two thirds for the requests it accepted, the "
        "rest to bring what they recorded into the ledger. What remains waits on local disk for the next start.",
    )
    keys: list[ApiKey] = Field(
        [],
        description="API keys, each a table `[[serve.keys]]`; `perennial keys create` prints one. A key for `predict`, "
        "`feedback` or `admin` makes one necessary for that scope; without one for `admin`, promote and rollback "
        "answer loopback only.",
    )
    keys_exempt: list[ReadPath] = Field(
        ["/livez", "/healthz", "/readyz", "/metrics"],
        description="Paths that never need a key, of those that only read.",
    )
    cors_origins: list[Origin] = Field(
        [], description="Origins whose pages may call the service, such as `https://shop.example`; none unless listed."
    )
    max_header_bytes: int = Field(
        32 * 2**10, ge=1024, le=2**20, description="Most bytes of a request's header lines; past it the answer is 431."
    )
    max_headers: int = Field(100, ge=10, le=1000, description="Most header lines of a request; past it 431.")
    max_url: int = Field(
        8 * 2**10, ge=256, le=2**16, description="Most bytes of a request's path and query; past it the answer is 414."
    )
    access_log: str = Field(
        "",
        description="Where a line of JSON goes for every request: a file, `-` for standard output; empty is nowhere.",
    )

    @model_validator(mode="after")
    def _one_image_fits(self) -> ServeSettings:
        if self.max_queue_bytes < self.max_bytes:
            raise ValueError("max_queue_bytes must be at least max_bytes, or no image of that size could be answered")
        return self

    @property
    def drain_requests(self) -> int:
        """Whole seconds of `drain_timeout` for the requests that were accepted."""
        return max(1, int(self.drain_timeout * 2 / 3))

    @property
    def drain_delivery(self) -> float:
        """Seconds of `drain_timeout` for what they recorded."""
        return max(0.0, self.drain_timeout - self.drain_requests)


class MonitorSettings(Section):
    """What a check looks at and when it speaks."""

    window: int = Field(1000, ge=1, description="Rows in a window: the latest predictions of the live model.")
    sample: int = Field(
        5000, ge=500, description="Rows of a window that are compared, drawn at random; labels all count."
    )
    min_rows: int = Field(
        500, ge=2, description="Fewer rows than this and the verdict is `insufficient_data`, never `ok`."
    )
    min_labels: int = Field(200, ge=1, description="Fewer labels than this say nothing about accuracy.")
    alpha: float = Field(
        0.0015,
        ge=0.001,
        lt=0.5,
        description="False-alarm rate of each of the six families of tests on clean windows, after correction; "
        "the whole verdict's is at most six times this.",
    )
    property_floor: float = Field(
        0.25,
        ge=0,
        description="Least shift of an image property that counts, in reference standard deviations.",
    )
    output_floor: float = Field(
        0.12,
        ge=0,
        description="Least shift of a probability or of the confidence that counts, in standard deviations.",
    )
    class_mix_floor: Fraction = Field(0.10, description="Least change of the class mix that counts (total variation).")
    embedding_floor: Fraction = Field(
        0.60, description="Least area under the curve of the domain classifier on embeddings that counts."
    )
    novelty_floor: Fraction = Field(
        0.02, description="Least share of images like nothing in the reference that counts, beyond the usual."
    )
    accuracy_drop: Fraction = Field(0.03, description="Least loss of accuracy that counts.")
    decode_failure_floor: Fraction = Field(
        0.10, description="Least share of the uploads that cannot be read that is a fault of collection."
    )
    open_after: int = Field(
        2, ge=1, le=10, description="So many of the latest `open_of` windows have to alarm before drift is opened."
    )
    open_of: int = Field(3, ge=1, le=10, description="Windows, without rows in common, that `open_after` looks at.")
    close_after: int = Field(
        3, ge=1, le=20, description="So many windows in a row have to be clean before an open drift is closed."
    )
    same_hours: int = Field(
        0,
        ge=0,
        le=52,
        description="Compare a window with the same hours of the week, in so many weeks before, once these hold "
        "`min_rows` different images; 0 compares with the reference of the training always. For traffic that changes "
        "with the hour.",
    )
    keep_reports: int = Field(
        100,
        ge=1,
        description="Reports of the newest checks that are kept, about 4 MB each, and runs in the Evidently workspace, "
        "about .6 MB each; older ones are deleted.",
    )
    report: Literal["always", "drift", "never"] = Field(
        "always",
        description="When a check draws its report, which is over half of what it costs: `always`, where the verdict "
        "is not `ok` (`drift`), or `never`. The numbers are kept in any case; `perennial ui` shows checks with one.",
    )
    workspace: bool = Field(
        True, description="Add each check's run to the Evidently workspace in `home`, which `perennial ui` shows."
    )
    interval: float = Field(
        300.0, gt=0, description="Seconds between the checks of `perennial watch`, where `schedule` is empty."
    )
    schedule: Schedule = Field(
        "",
        description="When `perennial watch` checks: a cron expression of five fields in UTC, such as `*/15 * * * *` "
        "(weekdays by name); empty is every `interval` seconds.",
    )
    host: str = Field(
        "127.0.0.1",
        description="Address at which the watcher's own `/metrics` listens. It asks for no key: give it another one "
        "only where the network lets nobody but Prometheus in.",
    )
    port: int = Field(3001, ge=0, le=65535, description="Port of the watcher's own `/metrics`; 0 turns it off.")

    @model_validator(mode="after")
    def _drift_can_open(self) -> MonitorSettings:
        if self.open_after > self.open_of:
            raise ValueError(
                f"open_after is {self.open_after} of the latest open_of = {self.open_of} windows, so drift would never "
                "be opened; raise open_of, or lower open_after"
            )
        return self


class RetrainSettings(Section):
    """When a model is trained anew, and what it must show."""

    data: str = Field("", description="The original training data; empty takes the path the live model was trained on.")
    min_labels: int = Field(100, ge=1, description="Labelled captures needed before a retrain is worth it.")
    accuracy_drop: Fraction = Field(0.05, description="Loss of accuracy that calls for a retrain.")
    on_drift: bool = Field(True, description="Whether a check may ask for a retrain, where accuracy was lost.")
    schedule: Schedule = Field(
        "",
        description="When to retrain whatever the checks say: a cron expression of five fields in UTC, such as "
        "`30 2 * * sun` (weekdays by name); empty is never. A time at which nothing ran is made up for, once.",
    )
    every_labels: int = Field(
        0, ge=0, description="Retrain when the live model has so many labels more than at the last retrain; 0 is never."
    )
    until_recovered: bool = Field(
        True,
        description="After a retrain that has not won back the accuracy that was lost, retrain again each time the "
        "labels have doubled.",
    )
    new_class_labels: int = Field(
        20,
        ge=0,
        description="A label that is no class of the model is kept, and becomes a class with the next retrain once so "
        "many different captured images have it; until then it counts nowhere. 0 refuses such labels.",
    )
    cooldown: float = Field(
        3600.0, ge=0, description="Seconds after a retrain in which no other is asked for, but by hand."
    )
    fresh_holdout: Fraction = Field(
        0.3, description="Share of the labelled captures the gate judges on; they never enter training."
    )
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="The challenger must be better on fresh rows at this level (one-sided, paired).",
    )
    margin: Fraction = Field(0.02, description="Accuracy the challenger may lose on the original held-out rows.")
    candidates: list[Literal["recent_weighted", "all", "importance", "recent_only"]] = Field(
        ["recent_weighted", "all", "importance", "recent_only"],
        description="Ways to weigh rows that are compared before training; `recent_weighted` is always one.",
    )
    class_margin: Fraction = Field(
        0.1, description="Recall that it may lose of any class, where that is beyond chance."
    )
    calibration_margin: Fraction = Field(
        0.05, description="Expected calibration error that it may add on the fresh rows, where that is beyond chance."
    )
    slowdown: float = Field(
        1.5, gt=0, description="How many times the champion's milliseconds an image the challenger may take."
    )
    quick: float = Field(
        20.0, ge=0, description="Milliseconds an image that are quick enough whatever the champion takes."
    )
    growth: float = Field(2.0, gt=0, description="How many times the champion's bytes the challenger's graph may have.")
    small: float = Field(
        50.0, ge=0, description="Megabytes of a graph that are small enough whatever the champion's has."
    )
    watch_labels: int = Field(
        200,
        ge=0,
        le=100_000,
        description="Labelled images after a deployment on which it is compared with the model before; if that one is "
        "better beyond chance, it is live again. 0 is none.",
    )
    watch_alpha: float = Field(
        0.01,
        gt=0,
        lt=0.5,
        description="How often, at most, a model that is no worse than the one before is gone back from all the same.",
    )
    niceness: int = Field(
        4,
        ge=0,
        le=19,
        description="How far `perennial retrain` stands back for the service on the same processors (`nice`): 0 not at "
        "all, 19 the most.",
    )
    threads: int = Field(
        0,
        ge=0,
        description="Processor threads of a retrain; 0 is half of the cores, at least one, and no more than "
        "`train.threads`.",
    )
    lease: float = Field(
        60.0,
        ge=1,
        description="Seconds until a dead retrain's lease is free again; one that lives renews it every third of that.",
    )


Stage = Literal["shadow"] | Annotated[float, Field(gt=0.0, lt=1.0)]


class RolloutSettings(Section):
    """How a challenger that passed the gate goes live: at once, or in stages, each of which can stop it."""

    stages: list[Stage] = Field(
        [],
        max_length=10,
        description="What comes between the gate and all of the traffic: `shadow` (it answers a sample beside the "
        'champion, and nobody sees it), then growing shares of the traffic, such as `["shadow", 0.1, 0.5]`; none is '
        "live at once.",
    )
    rows: int = Field(200, ge=1, description="Different images that it must have answered in a stage before the next.")
    labels: int = Field(
        0,
        ge=0,
        description="Labelled comparisons with the champion that a stage needs as well, for those who label all the "
        "time; 0 waits for none. Labels that come are looked at in any case.",
    )
    shadow_share: Fraction = Field(0.1, description="Share of the images that a shadow is shown.")
    shadow_budget: float = Field(
        0.05, gt=0, le=1, description="Most of one thread's time that a worker spends on them, as a share."
    )
    alpha: float = Field(
        0.01,
        ge=1e-6,
        lt=0.5,
        description="Chance that one of the tests stops a challenger that is no worse, however often it is looked at "
        "and over all stages together.",
    )
    patience: float = Field(
        604_800.0,
        gt=0,
        description="Seconds after which a stage that has too little evidence stops the rollout: the champion stays.",
    )

    @field_validator("stages")
    @classmethod
    def _grow(cls, stages: list[Stage]) -> list[Stage]:
        shares = [stage for stage in stages if stage != "shadow"]
        if "shadow" in stages[1:]:
            raise ValueError("shadow can only be the first stage: what follows answers a part of the traffic")
        if sorted(set(shares)) != shares:
            raise ValueError("the shares must grow from stage to stage")
        return stages


class RetentionSettings(Section):
    """What is kept and for how long, as `perennial prune` and `perennial watch` hold to it; 0 sets no bound.
    Labels, events, checks and models are never removed."""

    images_days: float = Field(30.0, ge=0, description="Days a captured image is kept after it was last predicted on.")
    images_bytes: int = Field(
        10_000_000_000,
        ge=0,
        description="Most bytes of captured images; past it the longest unused go, unlabelled ones first.",
    )
    labelled_days: float = Field(
        365.0,
        ge=0,
        description="Days a prediction that has a label is kept, and its image; "
        "never fewer than `rows_days` and `images_days` say.",
    )
    rows_days: float = Field(365.0, ge=0, description="Days a prediction is kept in the ledger.")
    rows_max: int = Field(
        10_000_000,
        ge=0,
        description="Most predictions in the ledger, about 1 kB each; past it the oldest unlabelled ones go.",
    )
    interval: float = Field(
        3600.0,
        ge=0,
        description="Seconds between the prunings of `perennial watch`; 0 leaves them to `perennial prune`.",
    )


def _webhook(value: SecretStr) -> SecretStr:
    import httpx  # only where somebody has one

    try:
        url = httpx.URL(value.get_secret_value())
        usable = url.scheme in ("http", "https") and bool(url.host) and 0 < (url.port or 443) < 2**16
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise ValueError("a webhook is a URL that begins with https:// (or with http://, in a network of your own)")
    return value


def _signing_secrets(value: SecretStr) -> SecretStr:
    for secret in value.get_secret_value().split():
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:  # of binascii
            key = b""
        if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
            raise ValueError(
                'a secret is whsec_ and 24 to 64 random bytes in base64: echo "whsec_$(openssl rand -base64 32)"'
            )
    return value


def _known_kinds(kinds: list[str]) -> list[str]:
    from perennial.ledger.events import EventKind  # only where somebody chooses: it brings SQLAlchemy

    known = [str(kind) for kind in EventKind]
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"there is no event {kind!r}; there are {', '.join(known)}")
    return kinds


class NotifySettings(Section):
    """Who is told when something happens: outgoing webhooks, sent by `perennial watch` or `perennial notify`."""

    webhooks: list[Annotated[SecretStr, AfterValidator(_webhook)]] = Field(
        [],
        max_length=20,
        description="URLs that are sent each event: Slack's or Mattermost's incoming webhooks, or a program of yours. "
        "Whoever knows such a URL can post to it, so they are not printed.",
    )
    secret: Annotated[SecretStr, AfterValidator(_signing_secrets)] = Field(
        SecretStr(""),
        description="Signs what is sent, by the Standard Webhooks specification: `whsec_` and 24 to 64 bytes in "
        "base64. Several, with spaces between them, sign each, so that a secret can be replaced; empty signs nothing.",
    )
    events: Annotated[list[str], AfterValidator(_known_kinds)] = Field(
        [
            "drift_opened",
            "drift_closed",
            "retrain_failed",
            "gate_refused",
            "rollout_stopped",
            "deployed",
            "rolled_back",
        ],
        min_length=1,
        description="The kinds of events that are sent.",
    )
    timeout: float = Field(10.0, ge=0.1, le=60, description="Seconds that a webhook has to answer.")
