"""Whole checks on real ledgers: what is written, what is told, and that nothing odd in a window kills one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
import sqlalchemy as sa
from scipy.stats import ks_2samp

from commands.monitor import _show as show
from monitoring import two_sample
from monitoring.check import Check, run_check
from monitoring.window import read_window, window_of
from perennial import ledger, overview, overview_document
from perennial.errors import InvalidBundle, NoLiveModel
from perennial.json_body import json_body
from perennial.ledger import EventKind
from perennial.ledger.labels import Feedback
from perennial.settings import Settings
from perennial.storage import Storage
from tests.monitoring.conftest import drawn_of


def turned(images: Any) -> Any:
    return np.rot90(images, axes=(1, 2)).copy()


def dark(images: Any) -> Any:
    return images * 0.6


def shown(engine: sa.Engine, settings: Settings) -> dict[str, Any]:
    """The latest check as the operations page is told of it, which is as it is described."""
    found: dict[str, Any] = json.loads(json_body(overview.read(engine, settings, 24)))
    schemas = overview_document.schemas("#/$defs/{model}")
    jsonschema.validate(found, {"$ref": "#/$defs/Overview", "$defs": schemas})
    return dict(found["check"])


def only(events: list[ledger.events.Event], kind: EventKind) -> ledger.events.Event:
    (found,) = (event for event in events if event.kind is kind)
    return found


@pytest.mark.usefixtures("without_reports")
def test_a_model_healthy_then_dark_then_turned_then_labelled(
    engine: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(engine, watched_settings)

    assert run_check(engine, watched_settings).verdict == "insufficient_data"
    assert model.kinds() == ["check_changed"]

    model.send()
    check = run_check(engine, watched_settings)
    assert (check.verdict, check.causes, check.rows) == ("ok", (), 300)
    assert not check.retrain.due
    assert model.kinds() == ["check_changed"] * 2

    model.send(change=dark, seed=1)
    check = run_check(engine, watched_settings)
    assert check.verdict == "sensor_shift"
    assert "property:brightness" in check.causes[0].columns
    assert "darker" in check.causes[0].why
    assert not check.retrain.due
    assert model.kinds()[2:] == ["check_changed", "drift_opened"]

    model.send(change=turned, seed=2)
    check = run_check(engine, watched_settings)
    assert check.verdict == "data_drift"
    assert not check.retrain.due
    assert model.kinds()[4:] == ["check_changed"], "the drift is open already"

    scores = model.send(change=turned, seed=3, labelled=True)
    check = run_check(engine, watched_settings)
    assert check.verdict == "data_drift"
    assert check.accuracy.labels is not None
    assert check.accuracy.labels.value == pytest.approx(scores.answers.correct.mean())
    assert check.retrain.due, check.retrain.why
    assert model.kinds()[5:] == ["retrain_requested"]
    request = only(model.events(), EventKind.RETRAIN_REQUESTED).detail
    newest = ledger.checks.latest(engine, "digits")[0]
    assert request["check"] == newest.id
    assert (request["why"], request["verdict"], request["labels"]) == (check.retrain.why, "data_drift", 300)
    assert request["window"]["rows"] == 300
    assert request["accuracy"]["labels"]["value"] == pytest.approx(scores.answers.correct.mean())

    assert run_check(engine, watched_settings).retrain.due, "it is still due,"
    assert len(model.kinds()) == 6, "but asked for once"

    ledger.events.add(engine, "digits", EventKind.RETRAIN_STARTED, {})
    check = run_check(engine, watched_settings)
    assert not check.retrain.due
    assert "the last retrain or rollback was" in check.retrain.why

    model.send(seed=4)
    assert run_check(engine, watched_settings).verdict == "ok"
    assert model.kinds()[-2:] == ["check_changed", "drift_closed"]

    rows = ledger.checks.latest(engine, "digits", 100)
    assert len(rows) == 8
    assert ledger.checks.count_by_verdict(engine, "digits")["data_drift"] == 4


def test_evidently_shows_the_numbers_that_the_verdict_rests_on(world: Any) -> None:
    from monitoring.report import render

    reference, window = world.reference(), world.scores(world.traffic[:300], dark)
    measured = two_sample.measure(reference, window)
    run = render(drawn_of(reference, window, measured))
    shown: dict[str, Any] = {}
    for metric in run.dict()["metrics"]:
        kind = metric["config"]["type"].rsplit(":", 1)[-1]
        shown[metric["config"]["column"] if kind == "ValueDrift" else kind] = metric["value"]
    assert len(measured.p_values) >= 11
    for column, p_value in measured.p_values.items():
        assert shown[column] == pytest.approx(p_value, rel=1e-6, abs=1e-300), column
    assert shown["predicted"] == pytest.approx(measured.class_mix)
    assert measured.separation is not None
    assert shown["DomainClassifier"]["auc"] == measured.separation.auc
    assert shown["DomainClassifier"]["p_value"] == measured.separation.p_value
    assert {"Accuracy", "RecallByLabel"} <= set(shown)


def test_a_report_is_drawn_when_it_is_wanted(engine: sa.Engine, watched_settings: Settings, deploy: Any) -> None:
    model = deploy(engine, watched_settings)
    assert run_check(engine, watched_settings).report_url is None, "nothing was tested, so there is nothing to show"
    drawn = {}
    for seed, change in enumerate((None, dark)):
        model.send(change=change, seed=seed)
        for wanted in ("always", "drift", "never") if change is None else ("drift", "never"):
            monitor = watched_settings.monitor.model_copy(update={"report": wanted})
            check = run_check(engine, watched_settings.model_copy(update={"monitor": monitor}))
            assert check.families, "the numbers are there in any case"
            drawn[str(check.verdict), wanted] = check.report_url is not None
    assert drawn == {
        ("ok", "always"): True, ("ok", "drift"): False, ("ok", "never"): False,
        ("sensor_shift", "drift"): True, ("sensor_shift", "never"): False,
    }  # fmt: skip
    storage, rows = Storage(watched_settings.blobs_url), ledger.checks.latest(engine, "digits", 100)
    assert [row.report_url is not None for row in reversed(rows)] == [False, *drawn.values()]
    for row in rows:
        assert row.report_url == row.detail.get("report_url")
        if row.report_url is not None:
            assert storage.read(storage.key_of(row.report_url)).lstrip()[:5].lower() in (b"<html", b"<!doc")


def test_a_few_images_like_nothing_known_are_told_and_shown(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    rows = np.random.default_rng(0).choice(world.traffic, 300, replace=False)
    plain, odd = (world.scores(part, labelled=False) for part in (rows[18:], rows[:18]))
    model.record(plain)
    noise = np.random.default_rng(1)
    scale = 6 * noise.choice([-1, 1], odd.embedding.shape)
    strange = model.record(replace(odd, embedding=odd.embedding + scale))
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "data_drift"
    assert [name for name, family in check.families.items() if family.alarm] == ["novelty"]
    assert "like nothing in the reference" in check.causes[0].why
    assert check.examples
    assert {example.prediction_id for example in check.examples} <= set(strange)
    of = shown(sqlite, watched_settings)["examples"]
    assert [each["prediction_id"] for each in of] == [each.prediction_id for each in check.examples]


@pytest.mark.usefixtures("without_reports")
def test_two_of_three_windows_open_drift_and_three_clean_ones_close_it(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    usual = {"open_after": 2, "open_of": 3, "close_after": 3}
    settings = watched_settings.model_copy(update={"monitor": watched_settings.monitor.model_copy(update=usual)})
    model = deploy(sqlite, settings)
    states, told = [], []
    for number, change in enumerate((None, dark, dark, None, None, None)):
        model.send(change=change, seed=number)
        check = run_check(sqlite, settings)
        if number == 1:
            check = run_check(sqlite, settings)  # of the same rows: it does not count again
        states.append(check.state)
        told.append([kind for kind in model.kinds() if kind.startswith("drift_")])
    assert states == ["healthy", "suspected", "drifting", "drifting", "drifting", "healthy"]
    assert told[1:] == [[], *[["drift_opened"]] * 3, ["drift_opened", "drift_closed"]]
    assert check.false_alarms is not None
    assert check.false_alarms.rate == pytest.approx(5 * settings.monitor.alpha)  # there are no labels
    assert check.false_alarms.windows > 3_000
    assert check.false_alarms.seconds > 0
    assert check.document()["window"]["last"] == check.last


@pytest.mark.usefixtures("without_reports")
def test_labels_that_change_their_meaning_are_concept_drift_and_call_for_a_retrain(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic[:300])
    swap = {"3": "8", "8": "3", "1": "7", "7": "1"}
    labels = [swap.get(label, label) if index % 2 else None for index, label in enumerate(scores.labels)]
    model.record(scores, labels=labels)
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, [cause.cause for cause in check.causes]) == ("concept_drift", ["concept_drift"])
    assert check.accuracy.labelled == 150
    assert check.retrain.due
    document = check.document()
    assert [name for name, family in document["families"].items() if family["alarm"]] == ["labels"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    row = ledger.checks.latest(sqlite, "digits")[0]
    assert row.detail == document
    assert (row.verdict, row.window) == ("concept_drift", document["window"])
    found = shown(sqlite, watched_settings)
    assert (found["accuracy"]["labelled"], found["retrain"]["due"]) == (150, True)
    assert found["families"]["labels"]["alarm"] is True


@pytest.mark.usefixtures("without_reports")
def test_labels_the_model_does_not_know_count_nowhere_until_they_are_a_class(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic[:300])
    typos = [f"class {label}" if index % 20 == 0 else label for index, label in enumerate(scores.labels)]
    ids = model.record(scores, labels=typos)
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.new_classes, check.retrain.due) == ("ok", (), False)
    assert check.accuracy.labelled == 285

    # From so many images on they are a class that the model has wrong, every time.
    ledger.labels.add(sqlite, [Feedback(id, "ten", known=False) for id in ids[:60]])
    check = run_check(sqlite, watched_settings)
    assert check.new_classes == ("ten",)
    assert check.accuracy.labelled == 288  # twelve other names still count nowhere
    assert check.accuracy.labels is not None
    assert check.accuracy.labels.value < 0.8
    assert check.retrain.due
    assert check.document()["new_classes"] == ["ten"]


@pytest.mark.usefixtures("without_reports")
def test_rows_of_a_precision_that_the_bundle_has_no_reference_for_are_not_compared(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    rows = world.traffic[:300]
    model.record(world.scores(rows, turned), precision="bfloat16", labels=["0"] * 300)
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.families, check.report_url) == ("insufficient_data", {}, None)
    assert "were made in bfloat16" in check.causes[0].why
    assert "reference rows for float32 only" in check.causes[0].why
    assert (check.accuracy.labels, check.accuracy.estimated, check.retrain.due) == (None, None, False)
    assert check.document()["window"]["precision"] == "bfloat16"
    assert "drift_opened" not in model.kinds()


@pytest.mark.usefixtures("without_reports")
def test_the_window_is_of_the_newest_rows_precision_alone(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    model.record(world.scores(world.traffic[300:500], turned), precision="bfloat16")
    model.send(250)
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.rows, check.precision) == ("ok", 250, "float32")


@pytest.mark.usefixtures("without_reports")
def test_labels_that_agree_leave_half_labelled_traffic_ok(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic[:300])
    model.record(scores, labels=[label if index % 2 else None for index, label in enumerate(scores.labels)])
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "ok"
    assert check.accuracy.labels is not None
    assert check.accuracy.labels.rows == 150


def test_broken_columns_are_reported_and_kill_nothing(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic[:300])
    properties, embedding = scores.properties.copy(), scores.embedding.copy()
    properties[:, 1] = np.nan
    properties[:, 2] = 3.0
    embedding[::2, 5] = np.inf
    model.record(
        replace(scores, properties=properties, embedding=embedding),
        # Half of the labels are of a class that no reference row has.
        labels=["zebra" if index % 2 else label for index, label in enumerate(scores.labels)],
    )
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "collection_fault"
    assert {cause.cause for cause in check.causes} >= {"collection_fault", "sensor_shift"}
    document = check.document()
    problems = {problem["column"]: problem["problem"] for problem in document["problems"]}
    assert problems["property:contrast"] == "0 of 300 values in the window are numbers"
    assert "property:sharpness" in check.families["properties"].alarmed[0].name
    assert check.families["embedding"].skipped is None
    assert check.families["labels"].alarm
    json.dumps(document, allow_nan=False)


@pytest.mark.usefixtures("without_reports")
def test_a_window_of_one_class_is_a_prior_shift(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    scores = world.scores(world.traffic)
    model.record(scores.take(scores.predicted == "4"))
    settings = watched_settings.model_copy(
        update={"monitor": watched_settings.monitor.model_copy(update={"min_rows": 50})}
    )
    check = run_check(sqlite, settings)
    assert check.verdict == "prior_shift"
    assert check.causes[0].columns[0] == "4"


@pytest.mark.usefixtures("without_reports")
def test_a_frozen_camera_is_a_collection_fault(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    model.record(world.scores(np.concatenate([np.repeat(world.traffic[:1], 200), world.traffic[1:100]])))
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "collection_fault"
    assert "67% of the window is one and the same image" in check.causes[0].why
    assert not check.retrain.due


@pytest.mark.usefixtures("without_reports")
def test_a_covered_lens_is_a_collection_fault(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    rng = np.random.default_rng(0)
    model.send(change=lambda images: rng.normal(0.02, 0.002, images.shape))
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "collection_fault"
    assert "covered lens" in check.causes[0].why


@pytest.mark.usefixtures("without_reports")
def test_a_few_images_sent_again_and_again_are_too_little_data(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    model.record(world.scores(np.tile(world.traffic[:10], 30)))
    check = run_check(sqlite, watched_settings)
    assert check.verdict == "insufficient_data"
    assert "only 10 different images" in check.causes[0].why


@pytest.mark.usefixtures("without_reports")
def test_only_rows_of_the_live_version_are_looked_at(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    deploy(sqlite, watched_settings)
    model = deploy(sqlite, watched_settings)
    model.send(seed=1)
    earlier = ledger.deployments.history(sqlite, "digits")[0].version
    model.record(world.scores(world.traffic[:300], turned), version=earlier)
    check = run_check(sqlite, watched_settings)
    assert (check.verdict, check.model_version, check.rows) == ("ok", model.version, 300)


@pytest.mark.usefixtures("without_reports")
def test_rows_a_model_was_trained_on_do_not_judge_its_outputs(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, world: Any
) -> None:
    held_out = np.arange(len(world.reference_rows)) >= 150
    model = deploy(sqlite, watched_settings, held_out)
    scores = model.send(labelled=True)
    check = run_check(sqlite, watched_settings)
    reference = world.scores(world.reference_rows)
    assert check.accuracy.reference is not None
    assert check.accuracy.reference.rows == 250
    columns = {column.name: column for column in check.families["output"].columns}
    expected = ks_2samp(reference.confidence[held_out], scores.confidence).pvalue * len(columns)
    assert columns["confidence"].p_value == pytest.approx(min(1.0, expected))
    columns = {column.name: column for column in check.families["properties"].columns}
    tested = sum(column.problem is None for column in columns.values())
    expected = ks_2samp(reference.properties[:, 0], scores.properties[:, 0]).pvalue * tested
    assert columns["property:brightness"].p_value == pytest.approx(min(1.0, expected))


def test_a_picture_sent_again_counts_once_with_its_label(world: Any, sqlite: sa.Engine, deploy: Any) -> None:
    from perennial.settings import load_settings

    model = deploy(sqlite, load_settings(name="digits"))
    scores = world.scores(world.traffic[:3])
    model.record(scores, labels=["7", None, None])
    model.record(scores)
    window = window_of(ledger.predictions.latest(sqlite, model.version, 10))
    assert (window.rows, len(window.scores)) == (6, 3)
    assert sorted(filter(None, window.scores.labels)) == ["7"]


@pytest.mark.usefixtures("without_reports")
def test_estimates_are_held_against_the_labels_that_come_later(
    engine: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(engine, watched_settings)
    rows = model.world.traffic
    ids, scores = [], []
    for part in (rows[:300], rows[300:600]):
        scores.append(model.world.scores(part))
        ids.append(model.record(scores[-1]))
        check = run_check(engine, watched_settings)
        assert check.accuracy.past_estimates is None
        run_check(engine, watched_settings)  # of the same rows: counts once
    for some, truth in zip(ids, scores, strict=True):
        given = [Feedback(prediction, str(label)) for prediction, label in zip(some, truth.labels, strict=True)]
        ledger.labels.add(engine, given)
    past = run_check(engine, watched_settings).accuracy.past_estimates
    assert past is not None
    assert past.windows == 2
    made = [row.detail["accuracy"]["estimated"]["value"] for row in ledger.checks.latest(engine, "digits", 5)][1::2]
    off = [abs(value - each.answers.correct.mean()) for value, each in zip(made, reversed(scores), strict=True)]
    assert past.error == pytest.approx(np.mean(off))
    assert past.worst == pytest.approx(max(off))


@pytest.mark.usefixtures("without_reports")
def test_a_check_withholds_and_labels_that_come_later_decide_whether_it_goes_on(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    rows = model.world.traffic
    ids = model.record(model.world.scores(rows[:300], turned))
    check = run_check(sqlite, watched_settings)
    accuracy = check.accuracy
    assert accuracy.estimated is accuracy.calibrated is None
    assert accuracy.unproven is not None
    assert "can be told from the reference" in str(accuracy.withheld)
    assert "cannot be estimated" in check.retrain.why
    assert check.document()["accuracy"]["withheld"] == accuracy.withheld

    # It is right as often as was estimated: such windows are known now.
    right = round(300 * accuracy.unproven.value)
    guesses = model.world.scores(rows[:300], turned).predicted
    given = [
        Feedback(prediction, str(guess) if at < right else "none of these")
        for at, (prediction, guess) in enumerate(zip(ids, guesses, strict=True))
    ]
    ledger.labels.add(sqlite, given)
    model.record(model.world.scores(rows[300:600], turned))
    after = run_check(sqlite, watched_settings).accuracy
    assert after.estimated is not None
    assert after.withheld is after.past_estimates is None


@pytest.mark.usefixtures("without_reports")
@pytest.mark.parametrize(("right", "told"), [(0.97, True), (1.0, False)])
def test_a_second_opinion_is_told_unless_the_reference_has_no_error_to_learn_from(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any, capsys: pytest.CaptureFixture[str], right: float,
    told: bool,
) -> None:  # fmt: skip
    deploy(sqlite, watched_settings).send(300)
    document = run_check(sqlite, watched_settings).document()
    assert document["accuracy"]["calibrated"] is not None
    document["accuracy"]["reference"]["value"] = right
    show(document)
    assert ("second opinion" in capsys.readouterr().out) is told


@pytest.mark.usefixtures("without_reports")
def test_errors_that_rise_over_windows_are_told(sqlite: sa.Engine, watched_settings: Settings, deploy: Any) -> None:
    model = deploy(sqlite, watched_settings)
    assert run_check(sqlite, watched_settings).accuracy.errors_rose is None
    right = model.world.scores(model.world.traffic[:600])
    model.record(right, labels=[str(guess) for guess in right.predicted])
    wrong = model.world.scores(model.world.traffic[:300])
    model.record(wrong, labels=["0" if guess != "0" else "1" for guess in wrong.predicted])
    check = run_check(sqlite, watched_settings)
    rise = check.accuracy.errors_rose
    assert rise is not None
    assert "of the labelled answers" in check.retrain.why
    assert (rise.before, rise.after) == (pytest.approx(0, abs=0.05), pytest.approx(1, abs=0.1))
    assert rise.since == pytest.approx(300, abs=64)


@pytest.mark.usefixtures("without_reports")
def test_of_a_large_window_a_random_part_is_compared_and_all_labels_count(
    engine: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(engine, watched_settings)
    sent = model.send(300, labelled=True)
    whole, part = (read_window(engine, model.version, 300, sample) for sample in (300, 100))
    assert (len(whole.scores), len(part.scores)) == (300, 100)
    assert set(part.scores.digests) < set(whole.scores.digests)
    assert (part.rows, part.start, part.end, part.first, part.last) == (
        whole.rows, whole.start, whole.end, whole.first, whole.last,
    )  # fmt: skip
    assert sorted(part.answers.labels) == sorted(whole.answers.labels) == sorted(sent.labels)
    assert part.answers.correct.mean() == whole.answers.correct.mean() == sent.answers.correct.mean()
    other = read_window(engine, model.version, 300, 100)
    assert set(other.scores.digests) != set(part.scores.digests)
    assert len(read_window(engine, model.version, 50, 100).scores) == 50
    assert len(read_window(engine, "nobody's", 50, 100).scores) == 0


def test_without_a_live_model_the_error_says_what_to_do(sqlite: sa.Engine, watched_settings: Settings) -> None:
    with pytest.raises(NoLiveModel, match="perennial train DATA --name digits"):
        run_check(sqlite, watched_settings)


def test_a_reference_that_was_changed_stops_the_check(
    sqlite: sa.Engine, watched_settings: Settings, deploy: Any
) -> None:
    model = deploy(sqlite, watched_settings)
    url = ledger.models.get(sqlite, "digits", model.version).bundle_url
    storage = Storage(watched_settings.blobs_url)
    storage.write(f"{storage.key_of(url)}/reference.parquet", b"something else")
    with pytest.raises(InvalidBundle, match=r"reference\.parquet"):
        run_check(sqlite, watched_settings)
    assert ledger.checks.latest(sqlite, "digits") == []


def test_the_document_has_what_the_contract_names(sqlite: sa.Engine, watched_settings: Settings, deploy: Any) -> None:
    deploy(sqlite, watched_settings).send()
    check: Check = run_check(sqlite, watched_settings)
    document = check.document()
    assert {"verdict", "causes", "model_version", "window", "families", "accuracy", "retrain"} <= set(document)
    assert set(document["window"]) == {"rows", "start", "end", "precision", "first", "last"}
    assert {"properties", "output", "class_mix", "embedding", "labels"} <= set(document["families"])
    assert all({"score", "p_value", "alarm"} <= set(family) for family in document["families"].values())
    assert document["collection"]["reference"] is None, "this bundle does not say how its images came in"
    assert document["collection"]["formats"] == {"PNG": 1.0}
    assert document["collection"]["failures"]["by_reason"] == {}
    assert {"labels", "estimated"} <= set(document["accuracy"])
    assert document["accuracy"]["labels"] is None
    assert {"value", "low", "high"} <= set(document["accuracy"]["estimated"])
    assert set(document["retrain"]) == {"due", "why"}
    assert document["seconds"] > 0
