"""Real data that others wrote, read from beside the project: counts that were measured once must stay."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real sets are not at {SHARED}"),
]


def summary(found):
    return found.noun.rows, {check: count for check, count in found.noun.findings.items() if count}


def test_banking77_as_intents_by_columns(validate):
    folder = SHARED / "banking77"
    mapping = {
        "input": "text",
        "output": "category",
        "instruction_text": "Classify the message. Answer with the label.",
    }
    found = validate(folder / "train.csv", test=[str(folder / "test.csv")], columns=mapping, max_quarantined=0.2)
    rows, findings = summary(found)
    assert rows == {"train": 8913, "validation": 1031, "test": 3080, "quarantine": 59}
    assert findings == {"leak": 59, "near_duplicate": 67}
    assert len(found.report["quality"]["labels"]["counts"]) == 77


def test_gsm8k_by_its_own_names(validate):
    folder = SHARED / "gsm8k"
    found = validate(folder / "train.jsonl", test=[str(folder / "test.jsonl")])
    assert found.noun.format == "prompt_completion (question, answer)"
    assert summary(found) == (
        {"train": 6725, "validation": 748, "test": 1319, "quarantine": 0},
        {"near_duplicate": 1},
    )


def test_alpaca_zh(validate):
    found = validate(SHARED / "alpaca-zh", max_quarantined=0.0)
    assert summary(found) == ({"train": 800, "validation": 87, "test": 105, "quarantine": 0}, {"exact_duplicate": 8})
    assert found.report["quality"]["languages"]["Chinese"] == pytest.approx(0.893, abs=0.001)


def test_the_chinese_medical_csv_is_gb18030(validate):
    mapping = {"instruction": "title", "input": "ask", "output": "answer"}
    found = validate(SHARED / "chinese-medical", columns=mapping, slice_columns=["department"], max_quarantined=0.0)
    assert summary(found) == (
        {"train": 5843, "validation": 709, "test": 714, "quarantine": 0},
        {"exact_duplicate": 378, "encoding_gb18030": 7644},
    )
    assert "心血管科" in {record.columns["department"] for record in found.test}


def test_fastchat_sharegpt_answers_one_question_in_many_ways(validate):
    found = validate(SHARED / "fastchat")
    assert found.noun.format == "sharegpt (conversations)"
    assert summary(found) == (
        {"train": 300, "validation": 15, "test": 18, "quarantine": 167},
        {"contradictory": 167, "near_duplicate": 226, "unused_column": 1},
    )


def test_open_datasets_in_chat_format_with_its_own_splits(validate):
    folder = SHARED / "open-datasets"
    held_out = {"validation": [str(folder / "val_chatml.jsonl")], "test": [str(folder / "test_chatml.jsonl")]}
    found = validate(folder / "train_chatml.jsonl", **held_out)
    assert found.noun.format == "messages (messages)"
    assert summary(found) == (
        {"train": 59, "validation": 7, "test": 9, "quarantine": 3},
        {"leak": 3, "near_duplicate": 6},
    )


def test_glaive_tool_calls_in_two_languages(validate):
    found = validate(SHARED / "glaive")
    assert summary(found) == (
        {"train": 362, "validation": 43, "test": 57, "quarantine": 63},
        {"exact_duplicate": 75, "contradictory": 63, "near_duplicate": 9, "email": 20, "unused_column": 2},
    )
    assert [source["unused_columns"] for source in found.report["sources"]] == [["tools"], ["tools"]]
