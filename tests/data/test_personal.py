"""Personal data is found as people write it, and hidden in everything that others see."""

import json

import pytest

from tasks.output.personal_data import hidden, redact
from tests.data.small_files import alpaca, write_lines

FOUND = {
    "email": ["ann@example.org", "ａｎｎ＠ｅｘａｍｐｌｅ．ｏｒｇ", "ann＠example.org", "a.b+c@mail.example.co.uk"],
    "mobile_number": [
        "13812345678", "+8613812345678", "+86 138 1234 5678", "138-1234-5678", "138 1234 5678", "(+86)13812345678",
        "１３８１２３４５６７８", "138\u00a01234\u00a05678", "8613812345678", "138–1234–5678",
    ],
    "card_number": [
        "4111111111111111", "4111 1111 1111 1111", "4111\u00a01111\u00a01111\u00a01111", "4111.1111.1111.1111",
        "2223 0000 4840 0011", "378282246310005", "４１１１１１１１１１１１１１１１",
    ],
    "id_number": [
        "11010519491231002X", "110105 19491231 002X", "110105-19491231-002X",
        "１１０１０５１９４９１２３１００２Ｘ",
    ],
}  # fmt: skip
KEPT = [
    "git@github.com:org/name.git",
    'x@app.route("/")',
    "490154203237518",
    "3.14159265358979323846",
    "4111 1111 1111 1112",
    "12345678901",
    "110105194912310021",
    "6000-150-1200-2000=2650",
]


@pytest.mark.parametrize(("check", "written"), [(check, text) for check, texts in FOUND.items() for text in texts])
def test_each_way_of_writing_is_found_once_and_nothing_around_it_is_lost(check, written):
    text, counts = redact(f"请看：{written}。Thanks, 谢谢")
    assert counts == {check: 1}
    assert text.startswith("请看：<") and text.endswith(">。Thanks, 谢谢")
    assert written not in text


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_personal_data_stays(text):
    assert redact(text) == (text, {})


def test_several_in_one_text_are_all_replaced_in_place():
    text, counts = redact("ａ＠b.org, 13812345678 and c@d.org；4111 1111 1111 1111")
    assert text == "<email>, <mobile> and <email>；<card>"
    assert counts == {"email": 2, "mobile_number": 1, "card_number": 1}


def test_texts_inside_lists_and_mappings_are_hidden():
    row = {"messages": [{"content": "ann@example.org", "n": 3}], "note": None}
    assert hidden(row) == {"messages": [{"content": "<email>", "n": 3}], "note": None}


def personal_rows():
    rows = [
        {"instruction": f"Write to ann{number}@example.org about {row['instruction']}", "output": row["output"]}
        for number, row in enumerate(alpaca(6))
    ]
    return [*rows, {"instruction": "Mail bob@example.org", "output": ""}, *alpaca(80, start=6)]


def test_the_uploaded_quarantine_has_no_row_about_personal_data_and_hides_it_in_the_others(tmp_path, validate):
    found = validate(write_lines(tmp_path / "a.jsonl", personal_rows()), personal_data="quarantine")
    shown = [
        json.loads(line) for line in (found.noun.folder / "shown/quarantine.jsonl").read_text("utf-8").splitlines()
    ]
    assert [(one["source"], one["reason"]) for one in shown] == [
        (one["source"], one["reason"]) for one in found.quarantine
    ]
    rows = {one["reason"]: one["row"] for one in shown}
    assert rows == {"empty": {"instruction": "Mail <email>", "output": ""}, "email": None}
    assert sum("ann" in json.dumps(one["row"]) for one in found.quarantine) == 6


@pytest.mark.parametrize("treatment", ["report", "quarantine", "redact"])
def test_nothing_that_leaves_the_data_step_holds_an_address(tmp_path, validate, treatment):
    mapping = {"input": "instruction", "output": "output"}
    rows = [
        {**row, "output": "ann@example.org" if number % 2 else "yes"}
        for number, row in enumerate(alpaca(80, start=200))
    ]
    found = validate(
        write_lines(tmp_path / "a.jsonl", [*personal_rows(), *rows]), personal_data=treatment, columns=mapping
    )
    files = [found.noun.folder / name for name in ("report.html", "report.md", "report.json", "shown/quarantine.jsonl")]
    for path in files:
        assert "@example.org" not in path.read_text("utf-8"), path.name
