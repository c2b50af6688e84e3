"""Who moved an alias, and on what evidence."""

import pytest

from tasks.artifacts import Basis
from tasks.promotion import history

BASIS = Basis(report="r", policy_digest="p", policy="/somewhere/policy.yaml")


def decision(version=2, promote=True, target="production", report="r"):
    basis = {"report": report, "policy_digest": "p", "policy": "/elsewhere/policy.yaml"}
    entry = {"kind": "decision", "name": "desk", "version": version, "promote": promote, "target": target}
    return {**entry, "registry": "here", "basis": basis}


def moves(version=2, flow="retrain", alias="production", kind="promote", name="desk", registry="here"):
    entry = {"kind": kind, "name": name, "version": version, "flow": flow, "registry": registry}
    return {**entry, "moves": [["desk-adapter", alias, 9], [name, "previous", 1], [name, alias, version]]}


def numbered(*entries):
    return [{"n": number, **entry} for number, entry in enumerate(entries, 1)]


def done(number):
    return {"kind": "done", "of": number}


CASES = {
    "a yes whose moves were confirmed": ((decision(), moves(), done(2)), True),
    "a yes that a crash cut short before its moves": ((decision(),), False),
    "a yes whose moves were never confirmed": ((decision(), moves()), False),
    "a yes whose moves were given up": ((decision(), moves(), {"kind": "abandoned", "of": 2, "reason": "x"}), False),
    "a no": ((decision(promote=False), moves(), done(2)), False),
    "a yes on another report": ((decision(report="s"), moves(), done(2)), False),
    "a yes for another alias": ((decision(target="staging"), moves(alias="staging"), done(2)), False),
    "another version": ((decision(3), moves(3), done(2)), False),
    "a later yes on other evidence": ((decision(), decision(report="s"), moves(), done(3)), False),
    "moves of an earlier release, without a decision that names its evidence": (
        ({"kind": "decision", "name": "desk", "version": 2, "promote": True, "target": "production"}, moves(), done(2)),
        False,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_version_got_an_alias_by_a_confirmed_move_after_a_yes_on_the_same_evidence(case):
    entries, expected = CASES[case]
    assert history.got_there(numbered(*entries), "desk", 2, "production", BASIS) == expected


def test_a_retraining_moved_it_unless_a_person_did_since():
    entries = numbered(moves(2), done(1))
    assert history.moved_by_retraining(entries, "desk", "production", 2)
    assert not history.moved_by_retraining(entries, "desk", "production", 1), "somebody moved it by hand"
    assert not history.moved_by_retraining(entries, "other", "production", 2)
    by_command = numbered(moves(2), done(1), moves(3, flow="promote"), done(3))
    assert not history.moved_by_retraining(by_command, "desk", "production", 3)
    back = numbered(moves(2), done(1), moves(1, kind="rollback"), done(3))
    assert not history.moved_by_retraining([{**entry, "flow": ""} for entry in back], "desk", "production", 1)


def test_another_registry_is_another_history():
    entries = numbered(moves(2), done(1), moves(3, registry="there"), done(3), {"kind": "decision", "name": "old"})
    assert [entry["n"] for entry in history.of_registry(entries, "here")] == [1, 2]
    assert [entry["n"] for entry in history.of_registry(entries, "there")] == [3, 4]
