"""What happens to production when data get better, get worse, or a person takes a version back."""

import pytest

from flows.evaluate import evaluate_version
from flows.promote import promote_version
from flows.rollback import roll_back
from tasks.errors import InvalidRecipe, UnknownVersion, WorkRefused
from tasks.recipe.stages import PromotionTarget
from tasks.registry import ledger, lookup

KNOWN = {"the sky": "blue", "grass": "green", "the sea": "blue"}


def few(shop):
    return shop.recipe("shades", train=shop.source("few.jsonl", KNOWN))


def all_of_them(shop):
    return shop.recipe("shades")


def shuffled(shop):
    colours = dict.fromkeys(["the sky", "a leaf"], "red") | dict.fromkeys(
        ["blood", "snow", "grass", "the sea"], "green"
    )
    return shop.recipe("shades", train=shop.source("shuffled.jsonl", colours))


@pytest.fixture
def history(released, shop, retrain):
    """Version 1 from half of the things, version 2 from all of them."""
    if not lookup.aliases(shop.uri, "shades"):
        first, second = retrain(few(shop)), retrain(all_of_them(shop))
        assert (first.versions.version, second.versions.version) == (1, 2)
        return first, second
    return None


def production(shop) -> int:
    return lookup.aliases(shop.uri, "shades")["production"]


def test_better_data_make_a_version_that_takes_over_and_worse_data_are_refused(history, shop, retrain):
    first, second = history
    assert first.decision.promote, first.decision.reasons
    assert second.decision.promote, second.decision.reasons
    assert second.weights.reused, "colours trained on the same bytes before"
    assert second.report.champion == "shades/1"
    against = {found.against for found in second.report.suites["test"].comparisons}
    assert against == {"base", "champion"}
    assert second.decision.previous == lookup.aliases(shop.uri, "shades")["previous"] == 1
    assert lookup.aliases(shop.uri, "shades-adapter")["production"] == 2

    third = retrain(shuffled(shop))
    assert not third.decision.promote
    assert any("against the champion" in reason for reason in third.decision.reasons)
    assert third.versions.version == 3
    assert production(shop) == 2
    assert lookup.find(shop.uri, "shades", version=3).tags["decision"].startswith("no: ")
    kept = [entry for entry in ledger.entries(shop.state.ledger) if entry.get("name") == "shades"][-1]
    assert (kept["kind"], kept["version"], kept["promote"]) == ("decision", 3, False)


def test_a_rollback_is_not_undone_by_the_next_run_but_by_force_with_a_reason(history, shop, retrain):
    assert production(shop) == 2
    back = roll_back("shades", "wrong greens since Monday")
    assert (back.version, back.promote, production(shop)) == (1, True, 1)
    assert [check.rule for check in back.checks] == ["rollback", "answers"]

    again = retrain(all_of_them(shop))
    assert not again.decision.promote
    assert "rolled back: wrong greens since Monday" in " ".join(again.decision.reasons)
    assert production(shop) == 1
    assert retrain(all_of_them(shop)).decision.reused

    assert not promote_version("shades", 2).promote
    forced = promote_version("shades", 2, force=True, reason="the test rows were wrong")
    assert forced.promote and production(shop) == 2
    assert "the test rows were wrong" in lookup.find(shop.uri, "shades", version=2).description
    after = retrain(all_of_them(shop)).decision
    assert after.promote and production(shop) == 2


def test_a_registered_version_can_be_asked_again_and_decided_on_again(history, shop):
    runs = len(shop.runs())
    report = evaluate_version(few(shop), 1)
    assert report.champion == "shades/2"
    assert set(report.suites["test"].scores) == {"base", "candidate", "champion"}
    assert len(shop.runs()) == runs + 1, "a later evaluation does not overwrite the release's own numbers"
    assert evaluate_version(few(shop), 1).reused

    decision = promote_version("shades", 1, PromotionTarget.staging)
    assert not decision.promote
    assert any("against the champion" in reason for reason in decision.reasons)
    assert production(shop) == 2


def test_what_does_not_exist_or_has_no_reason_is_refused(released, shop):
    with pytest.raises(UnknownVersion, match="colours/99 does not exist"):
        promote_version("colours", 99)
    with pytest.raises(UnknownVersion, match="colours/99 does not exist"):
        evaluate_version(shop.recipe("colours"), 99)
    with pytest.raises(InvalidRecipe, match="force needs a reason"):
        promote_version("colours", 1, force=True, reason=" ")
    with pytest.raises(WorkRefused, match="nothing to go back to"):
        roll_back("colours", "no reason")
    with pytest.raises(UnknownVersion, match="nothing is in production"):
        roll_back("nobody", "no reason")


def test_full_fine_tuning_ends_in_one_version_without_an_adapter(shop, retrain):
    training = {"method": {"type": "full"}, "learning_rate": 2e-3, "max_steps": 100}
    done = retrain(shop.recipe("whole", training=training))
    assert done.decision.promote, done.decision.reasons
    assert (done.weights.kind, done.merged.kind, done.merged.parity) == ("full", "full", None)
    assert (done.versions.version, done.versions.adapter_name) == (1, "")
    assert lookup.find(shop.uri, "whole", "production").tags["kind"] == "full"
    assert shop.versions("whole-adapter") == []
