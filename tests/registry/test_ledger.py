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


def test_damage_elsewhere_is_named_by_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"n": 1}\nnot json\n{"n": 3}\n')
    with pytest.raises(StateUnusable, match=r"ledger\.jsonl:2: damaged"):
        ledger.entries(path)


def test_the_mlflow_run_has_the_same_entry(run, tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, {"kind": "decision", "promote": False}, run)
    kept = tmp_path / "mlflow-artifacts" / run.run_id / "artifacts/decisions/1.json"
    assert json.loads(kept.read_text()) == ledger.entries(path)[0]
