from __future__ import annotations

import pytest

from pipeline.errors import RecipeError
from pipeline.quality.gate import Evidence, Sighting, decide, expected_gain
from pipeline.recipe import Gate, Rule, load_recipe

GATE = Gate(worse_above=0.05, clean_above=0.5, least_change=45, least_gain=0.3, review_below=20, review_fill=0.02)


def evidence(
    masked: float | None = None, guessed: float = 0.0, sightings: tuple[Sighting, ...] = (), **changes: float
) -> Evidence:
    scores: dict[str, float | None] = {
        "clean_probability": 0.0,
        "change_psnr": 25.0,
        "expected_psnr": 30.0,
        "missing": 0.0,
        **changes,
    }
    scores["expected_gain"] = expected_gain(scores["change_psnr"], 10 ** (-scores["expected_psnr"] / 10))  # type: ignore
    return Evidence(scores, masked, guessed, sightings)


def test_a_damaged_image_that_gets_better_is_restored() -> None:
    assert decide(evidence(), GATE)[0] == "restored"


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"clean_probability": 0.9, "change_psnr": 30.0}, "kept", "undamaged"),
        ({"clean_probability": 0.9, "change_psnr": 20.0}, "restored", "10.4 dB gain"),  # a fold, which only tiles show
        ({"worse_probability": 0.2}, "kept", "may be worse (probability 0.2, up to 0.05 is taken)"),
        ({"worse_probability": 0.9, "clean_probability": 0.8}, "kept", "seems undamaged (0.8)"),
        ({"worse_probability": 0.01, "clean_probability": 0.9, "change_psnr": 30.0}, "restored", "gain"),
        ({"worse_probability": 0.9, "masked": 0.1}, "restored", "10.0%"),  # somebody has asked for it
        ({"change_psnr": 50.0}, "kept", "almost nothing"),
        ({"change_psnr": 43.0, "expected_psnr": 30.0}, "kept", "little to gain"),
        ({"expected_psnr": 15.0, "change_psnr": 12.0}, "review", "uncertain"),
        ({"missing": 0.3, "guessed": 0.18}, "review", "18.0% of the area looked missing"),
        ({"missing": 0.18}, "restored", "gain"),  # thin scratches
        ({"masked": 0.0}, "kept", "empty"),
        ({"masked": 0.1, "clean_probability": 1.0}, "restored", "10.0%"),
        ({"masked": 0.1, "expected_psnr": 15.0}, "review", "uncertain"),
        ({"masked": 0.6}, "review", "60.0% of the area was filled"),
        ({"sightings": (Sighting("face", 18.0, 0.0),)}, "review", "a face is likely, and uncertain"),
        ({"sightings": (Sighting("text", 40.0, 0.2),), "masked": 0.1}, "review", "text is likely, and 20% of it"),
        ({"sightings": (Sighting("face", 33.0, 0.0),)}, "restored", "gain"),
    ],
)
def test_the_gate_says_why(changes: dict[str, float], status: str, word: str) -> None:
    decided, reasons = decide(evidence(**changes), GATE)  # type: ignore[arg-type]
    assert decided == status
    assert any(word in reason for reason in reasons)


def test_a_recipe_can_add_rules_over_any_score() -> None:
    rules = (
        Rule(score="colour_shift", above=10),
        Rule(score="noise_before", below=2, then="kept", reason="no noise worth the trouble"),
        Rule(score="clip_score_after", below=20),
    )
    gate = GATE.model_copy(update={"rules": rules})
    assert decide(evidence(colour_shift=12.3), gate) == ("review", ["colour_shift is 12.3, above 10"])
    assert decide(evidence(noise_before=1.0), gate) == ("kept", ["no noise worth the trouble"])
    assert decide(evidence(colour_shift=3.0, noise_before=9.0), gate)[0] == "restored"


def test_a_score_that_could_not_be_told_matches_no_rule() -> None:
    gate = GATE.model_copy(update={"rules": (Rule(score="clip_score_after", below=20),)})
    assert decide(Evidence(dict(evidence().scores) | {"clip_score_after": None}, None), gate)[0] == "restored"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("{score: colour_shif, above: 3}", "did you mean 'colour_shift'"),
        ("{score: psnr_after, below: 30}", "no score 'psnr_after' that the gate can go by"),
        ("{score: sharpness_after}", "either above or below"),
        ("{score: sharpness_after, above: 1, below: 0}", "either above or below"),
        ("{score: sharpness_after, above: 1, then: dropped}", "kept"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_its_reason(rule: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_recipe(overrides=[f"gate.rules=[{rule}]"])
