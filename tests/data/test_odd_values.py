"""Names, cells and nestings that no text format allows: one bad row or name never ends the run."""

import datetime
import json
import os
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.dataset import validate_sources
from tasks.errors import InvalidData
from tasks.recipe.stages import DataRecipe
from tests.data.small_files import alpaca, write_lines

ROWS = [{"instruction": row["instruction"], "output": row["output"]} for row in alpaca(60)]


def test_half_a_character_in_a_key_is_written_out_in_the_report(tmp_path, validate):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({**row, "\ud800key": "x"}) + "\n" for row in ROWS))
    found = validate(path)
    assert len(found.everything) == 60
    assert found.report["sources"][0]["unused_columns"] == ["\\ud800key"]


@pytest.mark.parametrize("kind", ["folder", "glob", "file"])
def test_a_file_name_that_is_not_utf8_is_read_and_written_out(tmp_path, validate, kind):
    folder = tmp_path / "data"
    folder.mkdir()
    name = os.fsdecode("高血压.jsonl".encode("gbk"))
    path = write_lines(folder / name, ROWS)
    source = {"folder": folder, "glob": folder / "*.jsonl", "file": path}[kind]
    found = validate(source)
    assert len(found.everything) == 60
    named = found.report["sources"][0]["name"]
    assert named.startswith("\\udcb8\\udcdf") and named.endswith(".jsonl")
    assert {record.source.rpartition(":")[0] for record in found.everything} == {named}


def nested(depth: int) -> object:
    value: object = "ann@example.org"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("treatment", ["report", "redact", "quarantine"])
@pytest.mark.parametrize("depth", [200, 500, 900, 985, 5000])
def test_a_deep_value_costs_its_row(tmp_path, validate, treatment, depth):
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    deep = f'{{"instruction": "x", "output": {"[" * depth}1{"]" * depth}}}\n'
    path.write_text(deep + path.read_text())
    found = validate(path, personal_data=treatment)
    assert set(found.reasons()) == {"a.jsonl:1"} and len(found.everything) == 60


def test_a_deep_value_in_an_array_costs_its_row(tmp_path, validate):
    path = tmp_path / "a.json"
    path.write_text(f"[{json.dumps({'instruction': 'x', 'output': nested(400)})}, {json.dumps(ROWS)[1:]}")
    assert validate(path, personal_data="redact").reasons() == {"a.json:#1": "schema"}


def test_a_value_as_deep_as_formats_go_is_still_read(tmp_path, validate):
    rows = [{**ROWS[0], "extra": nested(60)}, *ROWS[1:]]
    assert len(validate(write_lines(tmp_path / "a.jsonl", rows)).everything) == 60


BAD_TEXT = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, 3)), pa.py_buffer(b"a\xff\xfe")]
)
BAD_CELLS = {
    "text that is not UTF-8": BAD_TEXT,
    "a date after the year 9999": pa.array([2_932_897 * 9], pa.int32()).cast(pa.date32()),
    "a time after the year 9999": pa.array([2**62], pa.int64()).cast(pa.timestamp("us")),
    "a time zone that nobody knows": pa.array([1], pa.int64()).cast(pa.timestamp("us", "Nowhere/Atlantis")),
}


def with_first_cell(path, column, cell):
    rest = pa.array([None] * (len(ROWS) - 1), cell.type)
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    if column in columns and cell.type == pa.string():
        rest = pa.array(columns[column][1:])
    pq.write_table(pa.table({**columns, column: pa.chunked_array([cell, rest])}), path)
    return path


@pytest.mark.parametrize("cell", BAD_CELLS)
def test_a_bad_cell_of_a_column_that_nobody_reads_costs_nothing(tmp_path, validate, cell):
    found = validate(with_first_cell(tmp_path / "a.parquet", "created", BAD_CELLS[cell]))
    assert len(found.everything) == 60 and found.quarantine == []
    assert found.report["sources"][0]["unused_columns"] == ["created"]


@pytest.mark.parametrize("cell", BAD_CELLS)
def test_a_bad_cell_of_a_column_that_is_read_costs_its_row(tmp_path, validate, cell):
    path = with_first_cell(tmp_path / "a.parquet", "channel", BAD_CELLS[cell])
    if cell == "text that is not UTF-8":
        path = with_first_cell(tmp_path / "a.parquet", "output", BAD_CELLS[cell])
        found = validate(path)
        assert found.reasons() == {"a.parquet:#1": "schema"} and len(found.everything) == 59
    else:
        with pytest.raises(InvalidData, match="no good row has anything in column 'channel'"):
            validate(path, slice_columns=["channel"])


def test_a_column_twice_in_parquet_is_refused_by_its_name(tmp_path, validate):
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["instruction", "output", "output"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InvalidData, match=r"a\.parquet: the column 'output' is there twice"):
        validate(tmp_path / "a.parquet")


def test_a_value_that_is_no_text_costs_its_row_whatever_it_is(tmp_path, validate):
    rows = [{**row, "output": row["output"].encode()} for row in ROWS[:1]]
    good = [{**row, "output": row["output"].encode()} for row in ROWS[1:]]
    pq.write_table(pa.Table.from_pylist(rows + good), tmp_path / "bytes.parquet")
    times = [{**row, "output": datetime.datetime(2026, 1, 1)} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(times), tmp_path / "times.parquet")
    for name in ("bytes", "times"):
        with pytest.raises(InvalidData, match="60 × schema"):
            validate(tmp_path / f"{name}.parquet", max_quarantined=0.1)


def test_a_linked_folder_is_followed_once(tmp_path, validate):
    folder, linked = tmp_path / "data", tmp_path / "elsewhere"
    folder.mkdir()
    (linked / "deep").mkdir(parents=True)
    write_lines(folder / "a.jsonl", alpaca(30))
    write_lines(linked / "deep" / "b.jsonl", alpaca(30, start=30))
    (folder / "more").symlink_to(linked)
    (linked / "back").symlink_to(folder)
    (folder / "again").symlink_to(folder)
    for source in (folder, folder / "**" / "*.jsonl"):
        found = validate(source)
        assert [one["name"] for one in found.report["sources"]] == ["a.jsonl", "b.jsonl"]
        assert len(found.everything) == 60 and found.noun.findings["exact_duplicate"] == 0


def test_markdown_of_the_report_holds_names_as_text(tmp_path, validate):
    name = "![x](http:\u2044\u2044example.com)`|<b>.jsonl"
    rows = [{**row, "\n\n# PROMOTED\n![y](http://example.com/y.png)": "x"} for row in ROWS]
    folder = validate(write_lines(tmp_path / name, rows)).noun.folder
    text = (folder / "report.md").read_text("utf-8")
    assert "\\!\\[" not in text and "\\![x\\](http" in text and "\\![y\\](http" in text
    assert "\n# PROMOTED" not in text and "\\<b>" in text


def test_the_step_ends_with_a_reason_where_python_has_no_memory(tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", alpaca(60))
    monkeypatch.setattr("tasks.data.main_memory.free_main_memory", lambda: 1 << 20)
    monkeypatch.setattr("tasks.data.main_memory.LOOK_EVERY", 1)
    with pytest.raises(InvalidData, match=r"the memory does not hold these sources .*: the work was stopped before"):
        validate_sources(DataRecipe(train=[str(path)]), tmp_path, 0, "trial")
