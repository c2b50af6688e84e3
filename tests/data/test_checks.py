"""Every check finds what it is for, names the line, and does what the recipe says."""

import pytest

from tasks.errors import InvalidData
from tests.data.small_files import alpaca, write_lines

GOOD = alpaca(80)


def row(instruction, output, **more):
    return {"instruction": instruction, "input": "", "output": output, **more}


def test_an_empty_answer_and_an_empty_prompt_are_quarantined_with_their_row(tmp_path, validate):
    rows = [row("What?", "  "), row(" ", "answer"), *GOOD]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    assert found.reasons() == {"a.jsonl:1": "empty", "a.jsonl:2": "empty"}
    assert found.quarantine[0] == {
        "source": "a.jsonl:1",
        "reason": "empty",
        "detail": "the answer is empty",
        "row": rows[0],
    }
    assert found.noun.rows["quarantine"] == found.noun.findings["empty"] == 2


def test_length_limits_count_characters_of_the_answer_and_of_the_whole_record(tmp_path, validate):
    rows = [row("Short?", "no"), row("Long?", "x" * 200), *GOOD]
    found = validate(write_lines(tmp_path / "a.jsonl", rows), min_characters=3, max_characters=200)
    assert found.reasons() == {"a.jsonl:1": "too_short", "a.jsonl:2": "too_long"}
    assert found.quarantine[1]["detail"] == "205 characters, at most 200"


def test_a_one_word_label_is_not_too_short(tmp_path, validate):
    rows = [row(one["instruction"], "yes") for one in GOOD]
    assert validate(write_lines(tmp_path / "a.jsonl", rows)).noun.findings["too_short"] == 0


def test_an_exact_duplicate_is_dropped_and_does_not_count_as_bad(tmp_path, validate):
    found = validate(write_lines(tmp_path / "a.jsonl", [*GOOD, *GOOD[:30]]), max_quarantined=0.0)
    assert found.noun.findings["exact_duplicate"] == 30
    assert len(found.everything) == 80
    assert {record.source for record in found.everything} == {f"a.jsonl:{line}" for line in range(1, 81)}
    assert found.quarantine == []


def test_contradictory_answers_without_a_majority_are_all_quarantined(tmp_path, validate):
    rows = [row("Capital of France?", "Paris"), row("capital  of france?", "Lyon"), *GOOD]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    assert found.reasons() == {"a.jsonl:1": "contradictory", "a.jsonl:2": "contradictory"}
    assert "another is at a.jsonl:2" in found.quarantine[0]["detail"]


def test_a_strict_majority_is_believed_and_only_the_minority_is_quarantined(tmp_path, validate):
    rows = [row("Capital?", "Paris"), row("Capital?", "Lyon"), row("Capital?", "paris"), *GOOD]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    assert found.reasons() == {"a.jsonl:2": "contradictory"}
    assert "2 of 3 answer as a.jsonl:1" in found.quarantine[0]["detail"]


PERSONAL = [
    row("Write to ann.lee@example.org about it", "done"),
    row("Charge 4111 1111 1111 1111 please", "done once"),
    row("打电话 13812345678 给我", "好的"),
    row("身份证 11010519491231002X 查询", "好"),
    row("Order 4111 1111 1111 1112 is late", "not a card"),
]
KINDS = {"email": 1, "card_number": 1, "mobile_number": 1, "id_number": 1}


def test_personal_data_is_reported_by_default_and_stays(tmp_path, validate):
    found = validate(write_lines(tmp_path / "a.jsonl", [*PERSONAL, *GOOD]))
    assert {kind: found.noun.findings[kind] for kind in KINDS} == KINDS
    assert "ann.lee@example.org" in found.record("a.jsonl:1").prompt[0].content
    assert len(found.everything) == 85


def test_personal_data_is_redacted_everywhere_when_the_recipe_says_so(tmp_path, validate):
    bad = row("Mail bob@example.org", "")
    found = validate(write_lines(tmp_path / "a.jsonl", [*PERSONAL, *GOOD, bad]), personal_data="redact")
    first = found.record("a.jsonl:1").prompt[0]
    assert first.content == first.instruction == "Write to <email> about it"
    assert found.record("a.jsonl:2").prompt[0].content == "Charge <card> please"
    assert found.record("a.jsonl:3").prompt[0].content == "打电话 <mobile> 给我"
    assert found.record("a.jsonl:4").prompt[0].content == "身份证 <id> 查询"
    assert found.record("a.jsonl:5").prompt[0].content == PERSONAL[4]["instruction"]
    for path in (path for path in found.noun.folder.rglob("*") if path.is_file()):
        text = path.read_text("utf-8")
        assert "example.org" not in text and "13812345678" not in text, path.name


def test_personal_data_is_quarantined_when_the_recipe_says_so(tmp_path, validate):
    found = validate(write_lines(tmp_path / "a.jsonl", [*PERSONAL, *GOOD]), personal_data="quarantine")
    kinds = {"a.jsonl:1": "email", "a.jsonl:2": "card_number", "a.jsonl:3": "mobile_number", "a.jsonl:4": "id_number"}
    assert found.reasons() == kinds


def test_a_long_run_of_letters_does_not_slow_the_search_for_addresses(tmp_path, validate):
    rows = [row(f"{'a' * 15_000} {n}", "x") for n in range(40)]
    import time

    started = time.monotonic()
    validate(write_lines(tmp_path / "a.jsonl", [*rows, *GOOD]))
    assert time.monotonic() - started < 10


def test_more_bad_rows_than_the_limit_stop_with_counts_and_the_first_offenders(tmp_path, validate):
    rows = [*(row(f"Question {n}", "") for n in range(20)), row("bad \x07", "x"), *GOOD]
    with pytest.raises(InvalidData) as caught:
        validate(write_lines(tmp_path / "a.jsonl", rows), max_quarantined=0.2)
    said = str(caught.value)
    assert "21 of 101 rows are bad (20.8%), at most 20.0% may be: 20 × empty, 1 × broken_encoding" in said
    assert "a.jsonl:1: empty: the answer is empty" in said and "a.jsonl:5:" in said and "a.jsonl:6:" not in said
    assert validate(tmp_path / "a.jsonl", max_quarantined=0.21).noun.rows["quarantine"] == 21
