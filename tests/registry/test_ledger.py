"""A ledger that outlives crashes."""

import json

import pytest

from tasks.errors import StateUnusable
from tasks.registry import ledger


def test_entries_are_numbered_and_come_back_in_order(tmp_path):
    path = tmp_path / "state/ledger.jsonl"
    assert ledger.entries(path) == []
    assert [ledger.append(path, {"kind": "decision", "reason": text}) for text in ("zu kurz", "好")] == [1, 2]
    assert [(entry["n"], entry["reason"]) for entry in ledger.entries(path)] == [(1, "zu kurz"), (2, "好")]
    assert path.read_text("utf-8").count("\n") == 2


def test_a_torn_last_line_is_no_entry_and_is_written_over(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, {"kind": "decision"})
    with path.open("a") as stream:
        stream.write('{"n": 2, "kind": "dec')
    assert len(ledger.entries(path)) == 1
    assert ledger.append(path, {"kind": "second"}) == 2
    assert [entry["kind"] for entry in ledger.entries(path)] == ["decision", "second"]


DAMAGED = {
    "no JSON": b"not json",
    "empty": b"",
    "null": b"null",
    "a number": b"7",
    "a list": b"[]",
    "no UTF-8": b"\xff\xfe\x80",
    "zeros": b"\0" * 40,
    "too deep": b"[" * 100_000,
    "without its fields": b'{"name": "desk"}',
    "wrong types": b'{"n": "one", "kind": 2}',
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_damage_elsewhere_is_named_by_line(line, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"n": 1, "kind": "decision"}\n' + line + b'\n{"n": 3, "kind": "done", "of": 1}\n')
    with pytest.raises(StateUnusable, match=r"ledger\.jsonl:2: damaged.*take this line out"):
        ledger.entries(path)


def test_the_mlflow_run_has_the_same_entry(run, tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, {"kind": "decision", "promote": False}, run)
    kept = tmp_path / "mlflow-artifacts" / run.run_id / "artifacts/decisions/1.json"
    assert json.loads(kept.read_text()) == ledger.entries(path)[0]


DECISION = {
    "kind": "decision", "registry": "r", "name": "desk", "version": 2, "promote": True, "target": "production",
    "champion": "desk/1", "basis": {"report": "a", "policy_digest": "p"}, "forced": "", "flow": "retrain",
    "reasons": [{"rule": "better_than_base", "passed": True, "reason": "+0.1"}],
}  # fmt: skip
OTHERS = {
    "another version": {"version": 3},
    "another outcome": {"promote": False},
    "another target": {"target": "staging"},
    "another report": {"basis": {"report": "b", "policy_digest": "p"}},
    "another policy": {"basis": {"report": "a", "policy_digest": "q"}},
    "another registry": {"registry": "s"},
    "a force": {"forced": "because"},
    "another rule": {"reasons": [*DECISION["reasons"], {"rule": "not_moved_away", "passed": False, "reason": "x"}]},
}


def test_a_decision_is_written_once_in_whatever_words_and_its_copy_is_written_again(run, tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, {"kind": "decision", "name": "desk", "version": 2, "promote": True, "reasons": []})
    assert ledger.decide_once(path, DECISION) == 2
    reworded = [{**DECISION["reasons"][0], "reason": "desk/1 is in production"}]
    assert ledger.decide_once(path, {**DECISION, "reasons": reworded}, run) == 2
    ledger.append(path, {"kind": "promote", "name": "desk", "moves": []})
    ledger.append(path, {"kind": "done", "of": 3})
    ledger.append(path, {"kind": "rollback", "name": "another", "version": 2})
    assert ledger.decide_once(path, DECISION) == 2
    kept = tmp_path / "mlflow-artifacts" / run.run_id / "artifacts/decisions/2.json"
    assert json.loads(kept.read_text()) == ledger.entries(path)[1]


@pytest.mark.parametrize("case", OTHERS)
def test_another_decision_is_written(tmp_path, case):
    path = tmp_path / "ledger.jsonl"
    ledger.decide_once(path, DECISION)
    assert ledger.decide_once(path, {**DECISION, **OTHERS[case]}) == 2
    assert ledger.decide_once(path, DECISION) == 3, "it is not the last word any more"


def test_a_decision_after_a_rollback_is_a_new_one(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger.decide_once(path, DECISION)
    ledger.append(path, {"kind": "rollback", "name": "desk", "version": 1, "from": 2})
    assert ledger.decide_once(path, DECISION) == 3
