"""Every kind of file and name a recipe may give, and the digest over them."""

import csv
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.data import reading
from tasks.data.dataset import source_digest, validate_sources
from tasks.data.screening import screen
from tasks.errors import InvalidData
from tasks.recipe.stages import DataRecipe
from tests.data.small_files import alpaca, write_lines

ROWS = alpaca(60)


def as_array(path: Path) -> Path:
    path.write_text(json.dumps(ROWS, indent=1), "utf-8")
    return path


def as_compact_array(path: Path) -> Path:
    path.write_text(json.dumps(ROWS), "utf-8")
    return path


def as_object(path: Path) -> Path:
    path.write_text(json.dumps({"version": "1", "rows": ROWS}), "utf-8")
    return path


def as_lines(path: Path) -> Path:
    return write_lines(path, ROWS)


def as_csv(path: Path) -> Path:
    delimiter = "\t" if ".tsv" in path.name else ","
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def as_parquet(path: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


KINDS = [
    ("a.json", as_array, "JSON", "a.json:#12"),
    ("a.json", as_compact_array, "JSON", "a.json:#12"),
    ("a.jsonl", as_array, "JSON", "a.jsonl:#12"),
    ("a.json", as_object, "JSON", "a.json:#12"),
    ("a.json", as_lines, "JSON lines", "a.json:12"),
    ("a.jsonl", as_lines, "JSON lines", "a.jsonl:12"),
    ("records", as_lines, "JSON lines", "records:12"),
    ("a.csv", as_csv, "CSV", "a.csv:13"),
    ("a.tsv", as_csv, "TSV", "a.tsv:13"),
    ("a.parquet", as_parquet, "Parquet", "a.parquet:#12"),
]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("name", "write", "kind", "twelfth"), KINDS)
def test_every_kind_gives_the_same_records_and_says_where_each_was(
    tmp_path, validate, name, write, kind, twelfth, zipped
):
    path = write(tmp_path / name)
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
        path = path.rename(tmp_path / f"{name}.gz")
        twelfth = twelfth.replace(name, path.name)
    found = validate(path)
    assert len(found.everything) == 60
    assert found.report["sources"][0]["kind"] == kind
    assert found.record(twelfth).answer == "answer number 11"


def test_a_csv_row_after_a_cell_of_several_lines_keeps_its_own_line(tmp_path, validate):
    path = tmp_path / "a.csv"
    rows = "".join(f"{row['instruction']},{row['output']}\n" for row in alpaca(40))
    path.write_text(f'instruction,output\n"first\nof\nthree",one\n{rows}', "utf-8")
    found = validate(path)
    assert found.record("a.csv:2").prompt[0].content == "first\nof\nthree"
    assert found.record("a.csv:5").answer == "answer number 0"


def test_a_semicolon_separates_where_the_header_says_so(tmp_path, validate):
    path = tmp_path / "a.csv"
    path.write_text("question;answer\n" + "".join(f"{row['instruction']};yes, {n}\n" for n, row in enumerate(ROWS)))
    assert validate(path).record("a.csv:2").answer == "yes, 0"


def test_a_folder_and_a_glob_stand_for_their_files_in_order(tmp_path, validate):
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    write_lines(folder / "b.jsonl", alpaca(30))
    write_lines(folder / "more" / "c.json", alpaca(30, start=30))
    (folder / "README.md").write_text("not data")
    (folder / ".hidden.jsonl").write_text("not data")
    for source in (folder, tmp_path / "d*" / "**" / "[bc].json*"):
        found = validate(source)
        assert [one["name"] for one in found.report["sources"]] == ["b.jsonl", "c.json"]
        assert len(found.everything) == 60


def test_the_digest_is_of_bytes_and_roles_not_of_names_or_order(tmp_path):
    one, two = write_lines(tmp_path / "one.jsonl", alpaca(5)), write_lines(tmp_path / "two.jsonl", alpaca(5, start=5))
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(one.read_bytes())
    of = source_digest(DataRecipe(train=[str(one), str(two)]))
    assert of == source_digest(DataRecipe(train=[str(two), str(copy)]))
    assert of != source_digest(DataRecipe(train=[str(one)], test=[str(two)]))
    assert of != source_digest(DataRecipe(train=[str(one)]))


def test_what_was_read_has_the_digest_that_was_taken_before(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(write_lines(tmp_path / "a.jsonl", alpaca(60)).read_bytes()))
    pq.write_table(pa.Table.from_pylist(alpaca(60, start=60)), tmp_path / "b.parquet")
    recipe = DataRecipe(train=[str(path)], test=[str(tmp_path / "b.parquet")])
    assert screen(recipe, lambda _: None).source_digest == source_digest(recipe)


def test_a_source_that_changes_between_digest_and_reading_is_refused(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca(60))
    recipe = DataRecipe(train=[str(path)])
    taken = source_digest(recipe)
    write_lines(path, alpaca(60, start=1))
    with pytest.raises(InvalidData, match="sources changed before they were read"):
        validate_sources(recipe, tmp_path, 0, "a", sources=taken)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jsonl"]
    assert validate_sources(recipe, tmp_path, 0, "a").source_digest == source_digest(recipe) != taken


@pytest.mark.parametrize("put_back", [False, True])
def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, put_back):
    path = write_lines(tmp_path / "a.jsonl", alpaca(60))
    content, status, real = path.read_bytes(), path.stat(), reading._read_stream

    def slowly(stream, name, columns):
        path.write_bytes(content.replace(b"answer", b"poison"))
        rows = real(stream, name, columns)
        if put_back:
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return rows

    monkeypatch.setattr(reading, "_read_stream", slowly)
    with pytest.raises(InvalidData, match=r"a\.jsonl: the file changed while it was read"):
        reading.read(path)


def test_a_hub_dataset_is_read_at_the_commit_that_it_counts_by(tmp_path, monkeypatch):
    import datasets

    commits = iter(["one", "one", "one", "two"])
    read = []
    rows = datasets.Dataset.from_list(alpaca(60))
    monkeypatch.setattr("tasks.data.sources.hub_revision", lambda _: next(commits))
    monkeypatch.setattr("tasks.data.reading.hub_revision", lambda _: next(commits))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision, split: read.append(revision) or rows)
    recipe = DataRecipe(train=["hf:org/name"])
    assert validate_sources(recipe, tmp_path, 0, "a").rows["train"]
    with pytest.raises(InvalidData, match="sources changed"):
        validate_sources(recipe, tmp_path, 0, "a")
    assert read == ["one", "two"]


def test_the_order_of_sources_changes_nothing_that_comes_out(tmp_path, validate):
    one, two = (
        write_lines(tmp_path / "one.jsonl", alpaca(40)),
        write_lines(tmp_path / "two.jsonl", alpaca(40, start=40)),
    )
    assert validate([one, two]).noun.digest == validate([two, one]).noun.digest


def refused(validate, *args, **settings) -> str:
    with pytest.raises(InvalidData) as caught:
        validate(*args, **settings)
    return str(caught.value)


def test_a_missing_file_is_named_with_the_folder_and_the_nearest_name(tmp_path, monkeypatch):
    write_lines(tmp_path / "train.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidData) as caught:
        source_digest(DataRecipe(train=["trian.jsonl"]))
    assert "trian.jsonl: no such file" in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "did you mean train.jsonl?" in str(caught.value)


def test_a_folder_without_data_and_a_glob_without_matches_are_refused(tmp_path, validate):
    assert "holds no data files" in refused(validate, tmp_path)
    assert "matches no file" in refused(validate, tmp_path / "*.csv")


def test_a_hub_dataset_that_cannot_be_reached_says_so(tmp_path, validate, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("hf:nobody/none:train", "nobody/none"):
        with pytest.raises(InvalidData, match="hub cannot be reached"):
            source_digest(DataRecipe(train=[name]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl: holds no rows"),
        ("a.json", b"[]", "a.json: holds no rows"),
        ("a.csv", b"instruction,output\n", "a.csv: has no rows"),
        ("a.json", b'[{"instruction": "x",\n "output": }]', "a.json:2: not JSON"),
        ("a.jsonl", b"hello\nworld\n", "a.jsonl:1: not JSON"),
        ("a.txt", b"hello\nworld\n", "neither JSON, JSON lines, CSV, TSV nor Parquet"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl: not usable JSON"),
        ("a.csv", b'instruction,output\nx,y\nz,"open\n', "a.csv:3: not CSV"),
        ("a.csv.gz", gzip.compress(b"instruction,output\n" * 99, mtime=0)[:-9], "gzip file is damaged"),
        ("a.parquet", b"PAR1 and then nothing", "Parquet file is damaged"),
        ("a.json", b'["one", "two"]', "the columns found are none"),
        ("a.csv", b"text,label\nhello,greeting\n", "the columns found are text, label"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(tmp_path, validate, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refused(validate, tmp_path / name)


def test_wrong_columns_are_answered_with_what_every_format_needs(tmp_path, validate):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nhello,greeting\n")
    said = refused(validate, path)
    for word in (
        "alpaca needs",
        "messages needs",
        "sharegpt needs",
        "prompt_completion needs",
        "columns: {input: text",
    ):
        assert word in said
    assert "data.columns names txt, label" in refused(validate, path, columns={"input": "txt", "output": "label"})


def test_a_giant_line_is_refused_with_its_place(tmp_path, validate):
    path = write_lines(tmp_path / "a.jsonl", ROWS[:2])
    with path.open("ab") as stream:
        stream.write(b'{"instruction": "' + b"x" * (65 << 20))
    assert "a.jsonl:3: a line of more than 64 MB" in refused(validate, path)


def test_a_few_broken_lines_go_to_quarantine_with_their_line(tmp_path, validate):
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    path.write_text(path.read_text("utf-8") + '{"instruction": "cut of\n', "utf-8")
    assert validate(path).reasons() == {"a.jsonl:61": "not_json"}
