"""Files that hold more than they look like, and machines that hold less: refused in time and with a reason."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data.columnar import BATCH, table_rows
from tasks.data.reading import read, unpacked_size
from tasks.errors import InvalidData
from tests.data.small_files import alpaca, write_lines

ROOT = Path(__file__).parents[2]
MB = 1 << 20


def refused(validate, path, **settings) -> str:
    with pytest.raises(InvalidData) as caught:
        validate(path, **settings)
    return str(caught.value)


def bomb(path: Path, start: bytes, filling: bytes, end: bytes = b"") -> Path:
    with gzip.open(path, "wb", compresslevel=6) as stream:
        stream.write(start)
        for _ in range(300):
            stream.write(filling * (MB // len(filling)))
        stream.write(end)
    return path


@pytest.mark.parametrize(
    ("name", "start", "filling"),
    [
        ("a.json.gz", b"[", b" "),
        ("a.jsonl.gz", b'{"instruction": "', b"a"),
        ("a.jsonl.gz", b"", b"\n"),
        ("a.csv.gz", b"instruction,output\n", b"a,"),
        ("a.csv.gz", b"", b"ab,"),
        ("a.parquet.gz", b"PAR1", b"\0"),
    ],
)
def test_a_small_packed_file_is_not_unpacked_without_end(tmp_path, validate, name, start, filling):
    path = bomb(tmp_path / name, start, filling)
    assert path.stat().st_size < MB
    assert "which no text does" in refused(validate, path)


def test_a_text_that_packs_well_is_still_read(tmp_path, validate):
    path = write_lines(tmp_path / "a.jsonl", alpaca(60) * 500)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert packed.stat().st_size * 100 < path.stat().st_size
    assert len(validate(packed).everything) == 60


def test_a_header_of_many_columns_is_refused_with_the_first_names_and_a_count(tmp_path, validate):
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"c{number}" for number in range(500_000)) + "\n1,2\n")
    said = refused(validate, path)
    assert "a.csv:1: a header of 500,000 columns, at most 10,000: c0, c1, " in said
    assert said.endswith("c19 and 499,980 more.") and len(said) < 500


def test_wrong_columns_are_named_in_few_words_in_every_kind_of_file(tmp_path, validate):
    names = [f"c{number}" for number in range(9_000)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    (tmp_path / "a.jsonl").write_text(json.dumps(dict.fromkeys(names, "x")) + "\n")
    pq.write_table(pa.table({name: ["x"] for name in names}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        said = refused(validate, tmp_path / name)
        assert "c19 and 8,980 more" in said and len(said) < 1500, name


def test_columns_that_are_not_used_are_shown_in_few_words(tmp_path, validate):
    rows = [{**row, **{f"c{number:04}": "x" for number in range(900)}} for row in alpaca(60)]
    unused = validate(write_lines(tmp_path / "a.jsonl", rows)).report["sources"][0]["unused_columns"]
    assert unused == [*(f"c{number:04}" for number in range(20)), "and 880 more"]


def test_a_csv_line_without_end_is_refused_with_its_place(tmp_path, validate):
    path = tmp_path / "a.csv"
    path.write_text("instruction,output\nx,y\n" + "a" * (65 * MB))
    assert "a.csv:3: a line of more than 64 MB" in refused(validate, path)
    path.write_text("instruction,output\nx,y\n" + "a," * 2_000_000)
    assert "a.csv:3: a line of more than 1,000,000 cells" in refused(validate, path)


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.jsonl", '{"instruction": "a", "output": "b"}\n'), ("a.csv", "instruction,output\na,b\n"), ("a.json", "")],
)
def test_blank_lines_without_end_are_refused(tmp_path, validate, name, start):
    (tmp_path / name).write_text(start + "\n" * 1_500_000)
    assert "more than 1,000,000 blank lines" in refused(validate, tmp_path / name)


def few_bytes_many_rows(path: Path, rows: int, text: str = "hello") -> Path:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"instruction": column, "output": column}), path, store_schema=False)
    return path


def test_the_size_of_a_file_is_what_it_unpacks_to(tmp_path):
    plain = write_lines(tmp_path / "a.jsonl", alpaca(500))
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert unpacked_size(packed, 100 * MB) == unpacked_size(plain, 100 * MB) == plain.stat().st_size
    assert unpacked_size(few_bytes_many_rows(tmp_path / "a.parquet", 2_000_000), 100 * MB) >= 100 * MB


CHILD = """
import json, resource, sys, tempfile
from pathlib import Path
import datasketch, numpy, psutil, pyarrow.parquet
from tasks.data.dataset import validate_sources
from tasks.errors import InvalidData
from tasks.recipe.stages import DataRecipe

source, megabytes = sys.argv[1], int(sys.argv[2])
limit = psutil.Process().memory_info().vms + (megabytes << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    found = validate_sources(DataRecipe(train=[source], max_quarantined=1.0), Path(tempfile.mkdtemp()), 0, "trial")
    print(json.dumps(found.rows))
except InvalidData as fault:
    print("InvalidData:", fault)
"""


def with_memory(source: Path, megabytes: int) -> str:
    """What the data step says in a process that may have this much more memory than it begins with."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(megabytes)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


def test_a_search_for_duplicates_that_has_no_memory_ends_with_a_reason_and_not_with_the_process(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [{**row, "input": "x"} for row in alpaca(12_000)])
    said = with_memory(source, 190)
    assert said.startswith("InvalidData: the memory does not hold these sources")
    assert "near-duplicates" in said and "take fewer records" in said


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_that_the_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, name):
    path = tmp_path / name
    with path.open("w") as stream:
        stream.write("[" if name == "a.json" else "instruction,output\n" if name == "a.csv" else "")
        stream.truncate(400 * MB)
    said = with_memory(path, 300)
    assert f"{name}: has 400 MB or more, and " in said and "take fewer records" in said


def test_a_list_of_small_objects_is_weighed_before_it_is_built(tmp_path):
    (tmp_path / "a.json").write_text("[" + "{}," * 9_000_000 + "{}]")
    said = with_memory(tmp_path / "a.json", 400)
    assert "a.json: one JSON value that takes " in said


@pytest.mark.parametrize(("rows", "text"), [(3_000_000, "hello"), (3_000, "x" * 500_000)])
def test_a_parquet_file_of_few_bytes_and_much_data_is_refused(tmp_path, rows, text):
    path = few_bytes_many_rows(tmp_path / "a.parquet", rows, text)
    assert path.stat().st_size < 200_000
    said = with_memory(path, 500)
    assert said.startswith("InvalidData: ")


def test_a_small_file_is_read_with_little_memory(tmp_path):
    rows = json.loads(with_memory(write_lines(tmp_path / "a.jsonl", alpaca(200)), 190))
    assert sum(rows.values()) == 200


def test_reading_a_table_gives_the_same_rows_whatever_the_batch(tmp_path):
    rows = [{"instruction": row["instruction"], "output": row["output"]} for row in alpaca(150)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=70)
    found = read(tmp_path / "a.parquet")
    assert [row.values for row in found.rows] == rows
    assert [row.source for row in found.rows[:2]] == ["a.parquet:#1", "a.parquet:#2"]


def test_the_rows_of_a_hub_dataset_come_by_the_same_way(tmp_path):
    import datasets

    rows = [{"instruction": row["instruction"], "output": row["output"]} for row in alpaca(150)]
    table = datasets.Dataset.from_list(rows).select_columns(["instruction", "output"])
    found = table_rows(table.with_format("arrow").iter(batch_size=BATCH), "hf:org/name:train")
    assert [row.values for row in found] == rows
    assert found[-1].source == "hf:org/name:train:#150"
