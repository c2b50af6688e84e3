"""CSV as Excel and its kind write it: read as it was meant, or refused with what is wrong."""

import json

import pytest

from tasks.errors import InvalidData
from tests.data.small_files import alpaca

ROWS = alpaca(60)


def table(tmp_path, *lines, encoding="utf-8", name="a.csv"):
    path = tmp_path / name
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode(encoding))
    return path


def cells(delimiter=",", end="", ask="{}", answer="{}"):
    return [f"{ask.format(row['instruction'])}{delimiter}{answer.format(row['output'])}{end}" for row in ROWS]


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=|", "sep=\t"])
def test_the_line_that_tells_excel_the_delimiter_is_read(tmp_path, validate, first):
    delimiter = first.strip('"')[-1]
    found = validate(table(tmp_path, first, f"instruction{delimiter}output", *cells(delimiter)))
    assert len(found.everything) == 60
    assert found.record("a.csv:3").answer == "answer number 0"


@pytest.mark.parametrize(
    ("header", "end"), [("instruction,output", ","), ("instruction,output,,", ",,"), ("instruction,output", ",,,")]
)
def test_empty_cells_at_the_end_of_a_row_are_let_go(tmp_path, validate, header, end):
    found = validate(table(tmp_path, header, *cells(end=end)))
    assert len(found.everything) == 60 and found.quarantine == []
    assert found.report["sources"][0]["unused_columns"] == []


def test_rows_of_empty_cells_are_blank_lines(tmp_path, validate):
    found = validate(table(tmp_path, "instruction,output", *cells(), ",", ",", ",,"))
    assert found.report["rows_read"] == 60


def test_the_delimiter_is_that_of_the_header_outside_quotes(tmp_path, validate):
    lines = ['"question, short, plain";answer', *cells(";", answer="yes, {}")]
    mapping = {"input": "question, short, plain", "output": "answer"}
    assert validate(table(tmp_path, *lines), columns=mapping).record("a.csv:2").answer == "yes, answer number 0"


@pytest.mark.parametrize(
    "header", ["instruction,output,output", "instruction,output, output ", 'instruction,"output",output']
)
def test_a_column_that_is_there_twice_is_refused_by_its_name(tmp_path, validate, header):
    with pytest.raises(InvalidData, match=r"a\.csv:1: the column 'output' is there twice"):
        validate(table(tmp_path, header, *cells(end=",wrong")))


def test_a_column_without_a_name_is_called_by_its_place(tmp_path, validate):
    found = validate(
        table(tmp_path, ",instruction,output", *(f"{number},{line}" for number, line in enumerate(cells())))
    )
    assert len(found.everything) == 60
    assert found.report["sources"][0]["unused_columns"] == ["column 1"]


def test_a_quote_after_a_space_is_a_quote(tmp_path, validate):
    found = validate(table(tmp_path, "instruction, output", *cells(", ", answer='"{}, quoted"')))
    assert found.record("a.csv:2").answer == "answer number 0, quoted"


def test_quoted_columns_after_a_space_are_read(tmp_path, validate):
    lines = ['"question, short", "answer, long"', *cells('", "', ask='"{}', answer='{}, yes"')]
    mapping = {"input": "question, short", "output": "answer, long"}
    assert validate(table(tmp_path, *lines), columns=mapping).record("a.csv:2").answer == "answer number 0, yes"


def test_a_space_before_anything_else_is_part_of_the_text(tmp_path, validate):
    assert validate(table(tmp_path, "instruction,output", *cells(", "))).record("a.csv:2").answer == " answer number 0"


def test_a_stray_quote_after_a_space_leaves_the_other_rows_as_they_are(tmp_path, validate):
    found = validate(table(tmp_path, "instruction,output", 'what?, "so" he said', *cells(", ")))
    assert found.record("a.csv:2").answer == ' "so" he said'
    assert found.record("a.csv:3").answer == " answer number 0"


def test_other_numbers_of_cells_are_said_with_the_columns_and_the_line(tmp_path, validate):
    lines = cells()
    found = validate(table(tmp_path, "instruction,output", lines[0] + ",more", "alone", *lines[1:]))
    assert found.reasons() == {"a.csv:2": "schema", "a.csv:3": "schema"}
    details = [row["detail"] for row in found.quarantine]
    assert details == ["2 columns in the header, 3 cells in line 2", "2 columns in the header, 1 cells in line 3"]
    with pytest.raises(InvalidData, match=r"a\.csv:2: 2 columns in the header, 3 cells in line 2; none of the 60 rows"):
        validate(table(tmp_path, "instruction,output", *cells(end=",more")))


CHINESE = "高血压病人可以吃党参吗，请说明第{}种情况"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_code_page_936_is_read_with_its_euro_and_with_a_mark_before_it(tmp_path, validate, mark):
    lines = ["instruction,output", *cells(ask=CHINESE + " 价格 10€", answer="可以吃，但是要问医生，要 10€ {}")]
    text = mark + "".join(f"{line}\r\n" for line in lines)
    path = tmp_path / "a.csv"
    path.write_bytes(b"\x80".join(part.encode("gb18030") for part in text.split("€")))
    found = validate(path)
    assert len(found.everything) == 60
    assert found.record("a.csv:2").answer == "可以吃，但是要问医生，要 10€ answer number 0"
    assert found.report["sources"][0]["encoding"] == "GB18030"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
def test_byte_order_marks_of_files_put_together_are_not_part_of_the_text(tmp_path, validate, suffix, encoding):
    lines = cells(ask=CHINESE)
    if suffix == "jsonl":
        lines = [
            json.dumps({"instruction": CHINESE.format(row["instruction"]), "output": row["output"]}, ensure_ascii=False)
            for row in ROWS
        ]
    header = ["instruction,output"] if suffix == "csv" else []
    text = ["\ufeff\ufeff" + line if number % 7 == 0 else line for number, line in enumerate([*header, *lines])]
    found = validate(table(tmp_path, *text, encoding=encoding, name=f"a.{suffix}"))
    assert len(found.everything) == 60 and found.quarantine == []
    assert not any("\ufeff" in record.prompt[0].content for record in found.everything)
