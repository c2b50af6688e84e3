"""Bytes of every encoding: read right, said, or refused; never silently wrong text."""

import codecs
import json

import pytest

from tasks.data.checks import text_fault
from tasks.errors import InvalidData
from tests.data.small_files import alpaca, hash_words, write_lines

CHINESE = [
    {
        "instruction": f"高血压患者能吃党参吗？请说明第{n}种情况 {hash_words(n)}",
        "output": f"可以吃，但是要问医生，第{n}条。",
    }
    for n in range(60)
]


def encoded(path, encoding, rows):
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
    return path


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path, validate):
    path = tmp_path / "a.csv"
    path.write_bytes(
        codecs.BOM_UTF8
        + b"instruction,output\n"
        + "".join(f"{row['instruction']},{row['output']}\n" for row in alpaca(60)).encode()
    )
    found = validate(path)
    assert found.noun.format == "alpaca (instruction, input, output)"
    lines = encoded(tmp_path / "a.jsonl", "utf-8-sig", CHINESE)
    assert validate(lines).noun.rows["quarantine"] == 0


def test_gb18030_is_read_right_and_said(tmp_path, validate):
    found = validate(encoded(tmp_path / "a.jsonl", "gb18030", CHINESE))
    assert found.record("a.jsonl:1").answer == "可以吃，但是要问医生，第0条。"
    assert found.noun.findings["encoding_gb18030"] == 60
    assert found.report["sources"][0]["encoding"] == "GB18030"
    assert validate(encoded(tmp_path / "b.jsonl", "utf-8", CHINESE)).noun.findings["encoding_gb18030"] == 0


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Où est le café près de la forêt? Une idée générale à noter."),
        ("cp1252", "It’s “naïve” – très étrange, Ärger über Größe"),
        ("cp1251", "Где находится ближайший банк и когда он открыт"),
        ("shift_jis", "近くの銀行はどこですか。いつ開いていますか"),
        ("euc_kr", "가장 가까운 은행은 어디에 있습니까"),
        ("big5", "請問最近的銀行在哪裡？什麼時候開門？"),
    ],
)
def test_another_encoding_is_refused_with_the_byte_never_guessed(tmp_path, validate, encoding, text):
    rows = [{"instruction": f"{text} {n}", "output": text} for n in range(30)]
    path = encoded(tmp_path / "a.jsonl", encoding, rows)
    good = path.read_bytes()
    offset = next(place for place, byte in enumerate(good) if byte > 127)
    with pytest.raises(InvalidData) as caught:
        validate(path)
    said = str(caught.value)
    assert "a.jsonl: byte " in said and "neither UTF-8 nor plausible GB18030" in said
    assert offset <= int(said.split("byte ")[1].split(":")[0]) <= offset + 4


def test_utf16_is_named(tmp_path, validate):
    with pytest.raises(InvalidData, match="this is UTF-16; save the file as UTF-8"):
        validate(encoded(tmp_path / "a.jsonl", "utf-16", CHINESE))


def test_the_offset_is_right_beyond_the_first_chunk(tmp_path, validate):
    path = write_lines(tmp_path / "a.jsonl", [{"instruction": "x" * 1000, "output": "y"}] * 2000)
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b'{"instruction": "caf\xe9", "output": "z"}\n')
    with pytest.raises(InvalidData, match=f"byte {size + 20}:"):
        validate(path)


def test_damaged_bytes_in_a_utf8_file_cost_their_rows_only(tmp_path, validate):
    path = encoded(tmp_path / "a.jsonl", "utf-8", CHINESE)
    lines = path.read_bytes().split(b"\n")
    lines[6] = lines[6].replace("党参".encode(), "党".encode() + b"\xe5\x8f")
    path.write_bytes(b"\n".join(lines))
    found = validate(path)
    assert found.reasons() == {"a.jsonl:7": "broken_encoding"}
    assert len(found.everything) == 59


@pytest.mark.parametrize(
    "text",
    [
        "bad \ufffd here", "bell \x07", "c1 \x85 control", "itâ€™s fine", "cafÃ© crÃ¨me", "Â£5", "ä½\xa0å¥½",
        "锟斤拷锟斤拷", "高血压患者能吃党参吗".encode().decode("gb18030", "ignore"), "half \ud83d pair",
    ],
)  # fmt: skip
def test_a_damaged_text_is_quarantined(tmp_path, validate, text):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"instruction": text, "output": "fine"}, *alpaca(60)]), "utf-8")
    assert validate(path).reasons() == {"a.json:#1": "broken_encoding"}


@pytest.mark.parametrize(
    "text",
    [
        "naïve café, São João, NÃO, «âme»",
        "Ärger über Größe",
        "Привет, как дела?",
        "高血压患者能吃党参吗？",
        "請問最近的銀行在哪裡",
        "日本語のテキストです。",
        "가장 가까운 은행",
        "emoji 👍🏽 and 😀",
        "tab\tand\nline",
        "∑ ≤ ∞ µ",
        "“quotes” – dashes…",
        "Â",
    ],
)  # fmt: skip
def test_a_sound_text_is_not_called_damaged(text):
    assert text_fault(text) == ""
