from __future__ import annotations

import pytest

from perennial.bundle import Bundle, ClassMetrics, Estimate, Finding, Ladder, Manifest, Rung, Transfer
from training.verdict import amount, duration, title, verdict


def estimate(value: float, half: float = 0.02) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def rungs(simple: float, probe: float) -> tuple[Rung, ...]:
    return (
        Rung(name="simple", tried=True, accuracy=estimate(simple)),
        Rung(name="linear_probe", tried=True, accuracy=estimate(probe)),
    )


def transfer(verdict: str = "positive", simple_suffices: bool = False) -> Transfer:
    return Transfer(verdict=verdict, simple_suffices=simple_suffices, says=())


def with_(bundle: Bundle, accuracy: Estimate, transfer: Transfer | None = None, **changes: object) -> Manifest:
    each = ClassMetrics(precision=accuracy, recall=accuracy, support=50)
    ladder = Ladder(
        chosen="linear_probe", selection="all", budget=60, rungs=rungs(0.6, accuracy.value), transfer=transfer
    )
    plain = {
        "metrics": {"accuracy": accuracy}, "per_class": {"a": each, "b": each}, "ladder": ladder, "findings": (),
    }  # fmt: skip
    return bundle.manifest.model_copy(update=plain | changes)


def test_better_than_the_baselines_is_good_and_says_by_how_much(shape_bundle: Bundle) -> None:
    found = verdict(with_(shape_bundle, estimate(0.96), transfer()))
    assert (found.tone, found.title) == ("good", "Beats the baselines")
    assert found.headline.startswith("Linear probe on mobilenet_v3_small: right on 96.0 % of 18 test images")
    assert "(95 % interval 94.0 to 98.0)" in found.headline
    assert found.notes == (
        "Always answering 'a' would be right on 50.0 %, the simple baseline on 60.0 %: 10 times the mistakes.",
    )


@pytest.mark.parametrize(
    ("source", "found_out", "hinted"),
    [
        ("builtin", transfer("none", simple_suffices=True), True),
        ("builtin", transfer("negative"), True),
        ("builtin", transfer(), False),
        ("default", transfer("none", simple_suffices=True), False),
    ],
)
def test_where_the_built_in_weights_do_not_help_others_are_named(
    shape_bundle: Bundle, source: str, found_out: Transfer, hinted: bool
) -> None:
    pretrained = shape_bundle.manifest.pretrained.model_copy(update={"source": source})
    found = verdict(with_(shape_bundle, estimate(0.9), found_out, pretrained=pretrained))
    assert any("--weights default" in note for note in found.notes) is hinted


def test_a_simple_model_is_not_compared_with_itself(shape_bundle: Bundle) -> None:
    found = verdict(with_(shape_bundle, estimate(0.9), transfer("none", simple_suffices=True), strategy="simple"))
    assert found.notes[0] == "Always answering 'a' would be right on 50.0 %."
    assert (found.tone, found.title) == ("good", "A simple model is enough")


def test_no_better_than_the_commonest_class_is_not_shown_to_work(shape_bundle: Bundle) -> None:
    found = verdict(with_(shape_bundle, estimate(0.51), transfer()))
    assert found.tone == "bad"
    assert "not measurably better than always answering 'a'" in found.notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"transfer": transfer(simple_suffices=True)}, "A simple model does as well"),
        ({"transfer": transfer("negative")}, "Transfer is negative"),
        ({"findings": (Finding(kind="leak", message="The size tells the class."),)}, "Read the findings first"),
    ],
)
def test_what_makes_the_number_doubtful_calls_for_care(
    shape_bundle: Bundle, changes: dict[str, object], said: str
) -> None:
    found = verdict(with_(shape_bundle, estimate(0.96), **changes))  # type: ignore[arg-type]
    assert found.tone == "caution"
    assert any(said in note for note in found.notes)


def test_few_test_images_are_said_to_leave_a_wide_interval(shape_bundle: Bundle) -> None:
    assert "the interval is wide" in verdict(with_(shape_bundle, estimate(0.85, 0.1))).notes[-1]


def test_a_bundle_without_a_ladder_is_judged_by_the_commonest_class_alone(shape_bundle: Bundle) -> None:
    found = verdict(with_(shape_bundle, estimate(0.9), ladder=None))
    assert found.tone == "good"
    assert found.notes == ("Always answering 'a' would be right on 50.0 %.",)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (9.97, "10 s"), (119.4, "119 s"), (200, "3 min 20 s"), (180, "3 min"), (7500, "2 h 5 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (4610, "4.61 k"), (2_223_872, "2.22 M"), (300_774_272, "301 M")]
)
def test_amounts_have_three_figures(number: float, text: str) -> None:
    assert amount(number) == text


def test_a_rung_without_a_title_is_called_by_its_name() -> None:
    assert (title("linear_probe"), title("mutual_learning")) == ("Linear probe", "Mutual learning")
