"""Decisions on versions that differ in little, decisions anew, and two decisions at once."""

import shutil

import pytest

from flows.evaluate import evaluate_version
from flows.promote import promote_version
from flows.rollback import roll_back
from tasks import rollback
from tasks.artifacts import PromotionDecision
from tasks.errors import WorkRefused
from tasks.promotion import decision
from tasks.registry import aliases, client, ledger, lookup, moves

STEPS = ("dataset", "tokenized", "weights", "report", "merged", "versions", "decision")


def made(done) -> list[str]:
    return [name for name in STEPS if not getattr(done, name).reused]


def production(shop, name: str = "served") -> int:
    return lookup.aliases(shop.uri, name).get("production", 0)


def by_hand(shop, version: int, previous: int = 0) -> None:
    """Put a version of `served` into production as a person does on MLflow's page."""
    store = client.connect(shop.uri)
    store.set_registered_model_alias("served", "production", str(version))
    if previous:
        store.set_registered_model_alias("served", "previous", str(previous))


def decisions(shop, name: str) -> list[tuple[int, bool]]:
    entries = ledger.entries(shop.state.ledger)
    return [
        (entry["version"], entry["promote"]) for entry in entries if entry.get("name") == name and "promote" in entry
    ]


FULL = {"method": {"type": "full"}, "learning_rate": 2e-3, "max_steps": 100}


def as_served(shop, **serving):
    """A recipe without an adapter, so that one version is asked for each decision."""
    return shop.recipe("served", training=FULL, **({"serving": serving} if serving else {}))


@pytest.fixture(scope="module")
def retrained():
    return []


@pytest.fixture
def three(shop, retrain, retrained):
    """Versions 1, 2 and 3 of one model's weights, promoted one after another: what they are served with differs."""
    if not retrained:
        changes = ({}, {"max_tokens": 99}, {"max_tokens": 99, "description": "Shorter answers."})
        retrained += [retrain(as_served(shop, **serving)) for serving in changes]
    return retrained


def test_changes_of_serving_alone_are_promoted_one_after_another(three, shop, retrain):
    first, second, third = three
    assert [done.versions.version for done in three] == [1, 2, 3]
    assert [done.decision.promote for done in three] == [True, True, True]
    assert (third.decision.previous, production(shop)) == (2, 3)
    assert made(second) == made(third) == ["versions", "decision"]
    reasons = " ".join(second.decision.reasons)
    assert "served/1 is in production with the same weights and prompt" in reasons
    assert "no champion yet" in " ".join(first.decision.reasons) and "no champion yet" not in reasons
    assert made(retrain(as_served(shop, max_tokens=99, description="Shorter answers."))) == []

    report = evaluate_version(as_served(shop), 2)
    assert report.champion == ""
    decision = promote_version("served", 2, policy=str(shop.home / "policy.yaml"))
    assert decision.promote and production(shop) == 2
    assert decision.basis.report_from == "the steps of this machine"
    assert decision.basis.policy == str(shop.home / "policy.yaml")


@pytest.mark.slow
def test_serving_settings_that_come_back_are_promoted_again_and_a_persons_move_stands(three, shop, retrain):
    assert retrain(as_served(shop, max_tokens=50)).versions.version == 4
    again = retrain(as_served(shop, max_tokens=99))
    assert again.versions.version == 2
    assert again.decision.promote and production(shop) == 2
    back = retrain(as_served(shop))
    assert (back.decision.promote, production(shop)) == (True, 1)
    assert promote_version("served", 2).promote
    kept = retrain(as_served(shop)).decision
    assert not kept.promote and production(shop) == 2
    assert [check.rule for check in kept.checks if not check.passed] == ["not_moved_away"]


@pytest.mark.slow
@pytest.mark.parametrize("after", ["the decision", "the announcement", "the moves"])
def test_a_first_promotion_that_ends_half_done_is_finished_by_the_next_run(shop, retrain, monkeypatch, after):
    recipe = shop.recipe(f"halted-{after.split()[-1]}", training=FULL)
    where, name = {
        "the decision": (aliases, "carry_out"),
        "the announcement": (moves, "_move"),
        "the moves": (PromotionDecision, "__init__"),
    }[after]

    def halt(*_, **__):
        raise RuntimeError("halted")

    with monkeypatch.context() as patch:
        patch.setattr(where, name, halt)
        with pytest.raises(RuntimeError, match="halted"):
            retrain(recipe)
    done = retrain(recipe)
    assert made(done) == ["decision"] and done.decision.promote
    assert production(shop, recipe.name) == 1
    assert decisions(shop, recipe.name) == [(1, True)]


@pytest.mark.slow
@pytest.mark.parametrize("moved_away", [False, True])
def test_a_step_that_is_repeated_decides_the_same_and_writes_it_once(three, shop, retrain, moved_away):
    recipe = as_served(shop, max_tokens=44)
    retrain(recipe)
    if moved_away:
        promote_version("served", 1, force=True, reason="a person wants the first")
    done = retrain(recipe)
    assert done.decision.promote is not moved_away
    shutil.rmtree(shop.state.steps / "promote" / done.decision.key[:32])
    entries = ledger.entries(shop.state.ledger)
    again = retrain(recipe)
    assert made(again) == ["decision"] and again.decision.promote is not moved_away
    assert ledger.entries(shop.state.ledger) == entries


@pytest.mark.slow
def test_of_two_promotions_at_once_the_second_moves_nothing(three, shop, monkeypatch):
    by_hand(shop, 1)
    real = decision.loads_and_answers

    def interrupted(model, questions, state):
        answered = real(model, questions, state)
        if model.version == 2:
            assert promote_version("served", 3).promote
        return answered

    monkeypatch.setattr(decision, "loads_and_answers", interrupted)
    before = decisions(shop, "served")
    with pytest.raises(WorkRefused, match="production is served/3 now, and it was served/1"):
        promote_version("served", 2)
    assert production(shop) == 3
    assert decisions(shop, "served")[len(before) :] == [(3, True)]


@pytest.mark.slow
def test_a_rollback_that_another_promotion_overtakes_moves_nothing(three, shop, monkeypatch):
    by_hand(shop, 2, previous=1)
    real = rollback.loads_and_answers

    def interrupted(model, questions, state):
        assert model.version == 1
        promote_version("served", 3, force=True, reason="race")
        return real(model, questions, state)

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "asked", interrupted)
        with pytest.raises(WorkRefused, match="is 3 now and previous is 2"):
            roll_back("served", "bad 2")
    assert production(shop) == 3
    assert "rolled_back" not in lookup.find(shop.uri, "served", version=3).tags
    assert roll_back("served", "bad 3").version == production(shop) == 2


@pytest.mark.slow
def test_of_two_processes_that_promote_at_once_exactly_one_wins(three, shop):
    for _ in range(2):
        by_hand(shop, 1)
        force = ("--force", "--reason", "clean", "--to", "candidate")
        for version in (2, 3):
            process = shop.start("promote", "served", str(version), *force)
            said, _ = process.communicate(timeout=400)
            assert process.returncode == 0, said
        both = [shop.start("promote", "served", str(version)) for version in (2, 3)]
        said = [process.communicate(timeout=400)[0] for process in both]
        assert sorted(process.returncode for process in both) == [0, 1], said
        loser, winner = (2, 3) if both[0].returncode else (3, 2)
        assert production(shop) == winner
        assert f"production is served/{winner} now" in " ".join(said[loser - 2].replace("│", " ").split())


def test_another_metric_decides_anew_in_both_directions_and_production_stays(shop, retrain):
    shades = {"the sky": "bluish", "grass": "greenish", "blood": "reddish", "snow": "whitish", "the sea": "bluish"}
    train = shop.source("shades-of.jsonl", {**shades, "a leaf": "greenish"})

    def by(metric):
        return retrain(shop.recipe("tints", train=train, training=FULL, evaluation={"primary_metric": metric}))

    exact = by("exact_match")
    assert not exact.decision.promote and production(shop, "tints") == 0
    letters = by("chrf")
    assert letters.weights.reused and letters.decision.promote, letters.decision.reasons
    assert production(shop, "tints") == 1

    strict = by("exact_match").decision
    assert not strict.promote and strict.stays_in_production
    assert production(shop, "tints") == 1
    assert by("chrf").decision.promote
    described = lookup.find(shop.uri, "tints").description
    assert described.startswith("Promoted to production")
    assert decisions(shop, "tints") == [(1, False), (1, True)]

    evaluation = {"primary_metric": "chrf", "confidence": 0.9}
    unsure = retrain(shop.recipe("tints", train=train, training=FULL, evaluation=evaluation)).decision
    assert not unsure.promote and unsure.stays_in_production
    assert "the policy asks for 95%" in " ".join(unsure.reasons)
    assert lookup.find(shop.uri, "tints").description.startswith("Stays in production")
