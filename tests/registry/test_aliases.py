"""Moving aliases, also half-way."""

import subprocess
import sys

import pytest

from tasks.errors import StateUnusable, UnknownVersion, WorkRefused
from tasks.registry import aliases, ledger, lookup, moves

NAME, ADAPTER = "desk", "desk-adapter"


class Desk:
    """Three versions of a model and of its adapter, promoted and asked by number."""

    def __init__(self, uri, path, run):
        self.uri, self.path, self.run = uri, path, run

    def promote(self, version, target="production", **more):
        why, tags = f"version {version} is better", {"decision": "yes"}
        return aliases.promote(
            self.uri, NAME, version, ADAPTER, version, target, why, tags, self.path, self.run, **more
        )

    def rollback(self, flow_run=""):
        way = aliases.way_back(self.uri, NAME, self.path, self.run, flow_run)
        if not way.done:
            self.go_back(way.left, way.back, flow_run)
        return way.left, way.back

    def go_back(self, left, back, flow_run=""):
        aliases.rollback(self.uri, NAME, left, back, "wrong numbers", self.path, self.run, flow_run)

    def now(self, name=NAME):
        return lookup.aliases(self.uri, name)

    def kinds(self):
        return [entry["kind"] for entry in ledger.entries(self.path)]


@pytest.fixture
def desk(tracking_uri, run, versions_of, tmp_path):
    versions_of(NAME, 3)
    versions_of(ADAPTER, 3)
    return Desk(tracking_uri, tmp_path / "ledger.jsonl", run)


def interrupted(monkeypatch, after: int):
    """End the process, as it were, after so many alias moves."""
    real, left = moves._move, [after]

    def move(uri, wanted):
        for each in wanted:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(uri, [each])

    monkeypatch.setattr(moves, "_move", move)


def test_production_goes_with_staging_candidate_and_the_adapter_and_leaves_a_way_back(desk):
    assert desk.promote(1) == 0
    assert desk.now() == desk.now(ADAPTER) == {"candidate": 1, "staging": 1, "production": 1}
    assert desk.promote(2) == 1
    assert desk.now() == desk.now(ADAPTER) == {"candidate": 2, "staging": 2, "production": 2, "previous": 1}


def test_a_candidate_stays_out_of_staging_and_production(desk):
    desk.promote(1)
    desk.promote(2, "staging")
    desk.promote(3, "candidate")
    assert desk.now() == {"candidate": 3, "staging": 2, "production": 1}


def test_promoting_again_changes_nothing(desk):
    desk.promote(1)
    desk.promote(2)
    before, lines = desk.now(), len(desk.kinds())
    assert desk.promote(2) == 1
    assert desk.now() == before and len(desk.kinds()) == lines


def test_the_reason_is_on_the_version_above_its_own_description(desk):
    from tasks.registry.client import connect

    connect(desk.uri).update_model_version(NAME, "2", description="A desk model.")
    desk.promote(2, "candidate")
    desk.promote(2)
    found = lookup.find(desk.uri, NAME)
    assert found.description == "Promoted to production: version 2 is better\n\nA desk model."
    assert found.tags["decision"] == "yes" and found.tags["adapter"] == "desk-adapter/2"


@pytest.mark.parametrize("after", range(8))
def test_a_half_done_promotion_is_finished_by_whoever_comes_next(desk, monkeypatch, after):
    desk.promote(1)
    with monkeypatch.context() as patch:
        interrupted(patch, after)
        with pytest.raises(KeyboardInterrupt):
            desk.promote(2)
    assert desk.now()["production"] == 1
    assert desk.promote(1, "candidate") == 1
    assert desk.now()["production"] == desk.now(ADAPTER)["production"] == 2
    assert desk.now()["previous"] == 1
    assert desk.kinds() == ["promote", "done", "promote", "done", "promote", "done"]


def test_a_half_done_move_is_given_up_when_someone_else_has_moved_on(desk, monkeypatch):
    from tasks.registry.client import connect

    desk.promote(1)
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            desk.promote(2)
    connect(desk.uri).set_registered_model_alias(NAME, "production", "3")
    desk.promote(3)
    assert desk.now()["production"] == 3
    assert "abandoned" in desk.kinds()


def test_rollback_goes_back_with_the_adapter_and_remembers_the_one_before(desk):
    for version in (1, 2, 3):
        desk.promote(version)
    assert desk.rollback() == (3, 2)
    for name in (NAME, ADAPTER):
        assert (desk.now(name)["production"], desk.now(name)["previous"]) == (2, 1)
    assert desk.now()["candidate"] == 3
    assert lookup.find(desk.uri, NAME, version=3).tags["rolled_back"] == "wrong numbers"
    assert desk.rollback() == (2, 1)
    assert "previous" not in desk.now() and "previous" not in desk.now(ADAPTER)
    with pytest.raises(WorkRefused, match="nothing to go back to"):
        desk.rollback()


@pytest.mark.parametrize("after", range(4))
def test_a_rollback_repeated_after_a_crash_goes_back_once(desk, monkeypatch, after):
    for version in (1, 2, 3):
        desk.promote(version)
    with monkeypatch.context() as patch:
        interrupted(patch, after)
        with pytest.raises(KeyboardInterrupt):
            desk.rollback()
    assert desk.rollback() == (3, 2)
    assert (desk.now()["production"], desk.now()["previous"]) == (2, 1)
    assert desk.now(ADAPTER)["production"] == 2


def test_a_rolled_back_version_is_promoted_again_only_by_force(desk):
    desk.promote(1)
    desk.promote(2)
    desk.rollback()
    with pytest.raises(WorkRefused, match="was rolled back"):
        desk.promote(2)
    assert desk.now()["production"] == 1
    assert desk.promote(2, force=True) == 1
    assert "rolled_back" not in lookup.find(desk.uri, NAME).tags


def test_what_is_not_there_is_refused_before_anything_moves(desk):
    with pytest.raises(UnknownVersion, match="desk/9"):
        desk.promote(9)
    with pytest.raises(UnknownVersion, match="nothing is in production"):
        desk.rollback()
    with pytest.raises(UnknownVersion, match="no stage"):
        desk.promote(1, "live")
    assert desk.now() == {} and desk.kinds() == []


def test_a_full_model_has_no_adapter_to_move(desk):
    for version in (1, 2):
        aliases.promote(desk.uri, NAME, version, "", 0, "production", "better", {}, desk.path)
    assert aliases.way_back(desk.uri, NAME, desk.path) == (2, 1, False)
    aliases.rollback(desk.uri, NAME, 2, 1, "wrong", desk.path)
    assert lookup.aliases(desk.uri, NAME)["production"] == 1
    assert desk.now(ADAPTER) == {}


def decision(version, promote=True, **more):
    basis = {"report": "r", "policy": "p.yaml", "policy_digest": "p", "report_from": "here"}
    reasons = [{"rule": "better_than_base", "passed": promote, "reason": "+0.1"}]
    entry = {"kind": "decision", "name": NAME, "version": version, "promote": promote, "target": "production"}
    return {**entry, "flow": "retrain", "forced": "", "basis": basis, "reasons": reasons, **more}


def test_a_candidate_proved_against_a_version_that_left_production_moves_nothing_and_decides_nothing(desk):
    desk.promote(1)
    desk.promote(2, standing=1, decision=decision(2))
    before, kinds = desk.now(), desk.kinds()
    with pytest.raises(WorkRefused, match="production is desk/2 now, and it was desk/1"):
        desk.promote(3, standing=1, decision=decision(3))
    with pytest.raises(WorkRefused, match="production is desk/2 now, and it was empty"):
        desk.promote(3, "staging", standing=0, decision=decision(3))
    assert desk.now() == before and desk.kinds() == kinds
    assert "decision" not in lookup.find(desk.uri, NAME, version=3).tags
    assert desk.promote(3, standing=2, decision=decision(3)) == 2


def test_a_promotion_repeated_after_its_own_moves_is_no_other_promotion(desk):
    desk.promote(1)
    desk.promote(2, standing=1)
    assert desk.promote(2, standing=1) == 1
    assert desk.now()["production"] == 2


@pytest.mark.parametrize("after", range(8))
def test_a_promotion_repeated_after_a_crash_writes_its_decision_once(desk, monkeypatch, after):
    desk.promote(1)
    with monkeypatch.context() as patch:
        interrupted(patch, after)
        with pytest.raises(KeyboardInterrupt):
            desk.promote(2, standing=1, decision=decision(2))
    desk.promote(2, standing=1, decision=decision(2))
    desk.promote(2, standing=1, decision=decision(2))
    assert desk.kinds() == ["promote", "done", "decision", "promote", "done"]
    assert desk.now()["production"] == desk.now(ADAPTER)["production"] == 2


def refuse(desk, version):
    why = decision(version, promote=False)
    aliases.refuse(desk.uri, NAME, version, "worse", {"decision": "no: worse"}, desk.path, desk.run, why)


def test_a_refusal_finishes_what_a_crash_left_before_it_names_its_candidate(desk, monkeypatch):
    desk.promote(1)
    with monkeypatch.context() as patch:
        interrupted(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            desk.promote(2)
    refuse(desk, 3)
    refuse(desk, 3)
    assert desk.now() == {"candidate": 3, "staging": 2, "production": 2, "previous": 1}
    assert desk.kinds() == ["promote", "done", "promote", "done", "decision"]
    assert lookup.find(desk.uri, NAME, version=3).description == "Not promoted: worse"


def test_a_no_on_what_is_in_production_says_that_it_stays(desk):
    desk.promote(1)
    refuse(desk, 1)
    found = lookup.find(desk.uri, NAME)
    assert found.version == 1
    assert found.description == "Stays in production, and would not be promoted now: worse"
    desk.promote(1)
    assert lookup.find(desk.uri, NAME).description == "Promoted to production: version 1 is better"


def test_a_rollback_of_a_pair_that_changed_meanwhile_moves_nothing(desk):
    for version in (1, 2):
        desk.promote(version)
    way = aliases.way_back(desk.uri, NAME, desk.path)
    assert way == (2, 1, False)
    desk.promote(3, force=True)
    with pytest.raises(WorkRefused, match="is 3 now and previous is 2; when this rollback began they were 2 and 1"):
        desk.go_back(2, 1)
    assert (desk.now()["production"], desk.now()["previous"]) == (3, 2)
    assert "rolled_back" not in lookup.find(desk.uri, NAME, version=3).tags


def test_two_rollbacks_at_once_go_back_once(desk):
    for version in (1, 2, 3):
        desk.promote(version)
    assert aliases.way_back(desk.uri, NAME, desk.path) == aliases.way_back(desk.uri, NAME, desk.path) == (3, 2, False)
    desk.go_back(3, 2)
    with pytest.raises(WorkRefused, match="when this rollback began"):
        desk.go_back(3, 2)
    assert desk.now()["production"] == 2


def test_a_rollback_repeated_in_the_same_run_goes_back_once(desk):
    for version in (1, 2, 3):
        desk.promote(version)
    assert desk.rollback("run-1") == desk.rollback("run-1") == (3, 2)
    assert desk.now()["production"] == 2
    assert desk.rollback("run-2") == (2, 1)


def test_a_rollback_that_was_given_up_for_somebody_elses_move_is_not_done(desk, monkeypatch):
    from tasks.registry.client import connect

    for version in (1, 2, 3):
        desk.promote(version)
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            desk.rollback("run-1")
    connect(desk.uri).set_registered_model_alias(NAME, "production", "1")
    with pytest.raises(WorkRefused, match="rollback of desk/3 was given up: desk@production was moved to 1"):
        desk.rollback("run-1")
    assert desk.now()["production"] == 1


def test_what_was_rolled_back_is_found_by_its_weights(desk):
    from tasks.registry.client import connect

    client = connect(desk.uri)
    for number in (2, 3):
        client.set_model_version_tag(NAME, str(number), "weights", "w")
    desk.promote(1)
    desk.promote(2)
    desk.rollback()
    assert aliases.rolled_back(desk.uri, NAME, "w") == {2: "wrong numbers"}
    assert aliases.rolled_back(desk.uri, NAME, "other") == aliases.rolled_back(desk.uri, NAME, "") == {}


def test_a_lock_that_another_process_keeps_is_named_and_not_waited_for_for_ever(desk, monkeypatch):
    held = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(60)"
    )
    lock = desk.path.with_name("ledger.jsonl.lock")
    monkeypatch.setattr(moves, "MOVES_SECONDS", 0.2)
    with subprocess.Popen([sys.executable, "-c", held, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            for act in (lambda: desk.promote(1), desk.rollback, lambda: refuse(desk, 1)):
                with pytest.raises(
                    StateUnusable, match=r"ledger\.jsonl\.lock: another process has been moving aliases"
                ):
                    act()
        finally:
            other.kill()
    assert desk.promote(1) == 0
