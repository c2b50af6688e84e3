"""The reports say what happened, in a form that a machine, a run page and a person can read."""

import html.parser
import re

from tasks.data.dataset import UNITS, load_split, validate_sources
from tasks.recipe.stages import DataRecipe
from tests.data.small_files import alpaca, write_lines

EVIL = "<script>alert('x')</script> & \"quoted\" | pipe"


def labelled(count):
    return [{"text": row["instruction"], "label": "abc"[n % 7 % 3]} for n, row in enumerate(alpaca(count))]


def test_the_report_counts_every_row_once(tmp_path, validate):
    rows = [*alpaca(100), *alpaca(10), {"instruction": "x", "output": ""}]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    report = found.report
    assert report["rows_read"] == 111
    assert report["rows"] == found.noun.rows
    assert sum(report["rows"].values()) + found.noun.findings["exact_duplicate"] == 111
    by_check = {finding["check"]: finding for finding in report["findings"]}
    assert by_check["empty"]["offenders"] == ["a.jsonl:111: the answer is empty"]
    assert {check: finding["count"] for check, finding in by_check.items()} == found.noun.findings
    assert sum(report["quality"]["answer_characters"]["counts"]) == 100


def test_labels_are_counted_where_answers_are_few_and_languages_always(tmp_path, validate):
    mapping = {"input": "text", "output": "label"}
    quality = validate(write_lines(tmp_path / "a.jsonl", labelled(140)), columns=mapping).report["quality"]
    assert quality["labels"]["counts"] == {"a": 60, "b": 40, "c": 40}
    assert quality["labels"]["imbalance"] == 1.5
    assert quality["languages"]["Latin"] == 1.0
    assert validate(write_lines(tmp_path / "b.jsonl", alpaca(80))).report["quality"]["labels"] is None


def test_labels_that_the_test_rows_lack_are_said(tmp_path, validate):
    mapping = {"input": "text", "output": "label"}
    rows = labelled(140)
    tested = [{"text": f"{row['instruction']}?", "label": "a"} for row in alpaca(30, start=200)]
    test = write_lines(tmp_path / "test.jsonl", tested)
    found = validate(write_lines(tmp_path / "a.jsonl", rows), columns=mapping, test=[str(test)])
    by_check = {finding["check"]: finding for finding in found.report["findings"]}
    assert by_check["label_not_in_test"]["count"] == 2
    assert by_check["label_not_in_test"]["action"] == "reported"
    assert [line[:3] for line in by_check["label_not_in_test"]["offenders"]] == ["'b'", "'c'"]
    assert validate(write_lines(tmp_path / "b.jsonl", rows), columns=mapping).noun.findings["label_not_in_test"] == 0


def test_a_column_that_nothing_reads_is_a_finding(tmp_path, validate):
    rows = [{**row, "tools": "[]", "mood": "good"} for row in alpaca(60)]
    found = validate(write_lines(tmp_path / "a.jsonl", rows), slice_columns=["mood"])
    by_check = {finding["check"]: finding for finding in found.report["findings"]}
    assert by_check["unused_column"]["offenders"] == ["a.jsonl: tools"]


class Tags(html.parser.HTMLParser):
    """Counts tags and finds those left open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_data_as_text(tmp_path, validate):
    rows = [{"text": EVIL + row["text"], "label": row["label"] + "<b>"} for row in labelled(60)]
    found = validate(write_lines(tmp_path / "<i>.jsonl", rows), columns={"input": "text", "output": "label"})
    page = (found.noun.folder / "report.html").read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.seen.count("svg") == 2 and "script" not in tags.seen
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)
    assert "&lt;script&gt;" in page and "&lt;i&gt;.jsonl" in page


def test_the_markdown_has_a_row_for_every_split_and_check(tmp_path, validate):
    found = validate(write_lines(tmp_path / "a|b.jsonl", [*alpaca(80), *alpaca(1)]))
    text = (found.noun.folder / "report.md").read_text("utf-8")
    assert f"| train | {len(found.train)} |" in text
    assert "| exact_duplicate | 1 | dropped | a\\|b.jsonl:81: same as a\\|b.jsonl:1 |" in text
    assert "| leak | 0 |" in text


def test_progress_adds_up_and_the_splits_read_back_as_they_were_written(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", alpaca(90))
    steps = []
    folder = tmp_path / "out"
    folder.mkdir()
    recipe = DataRecipe(train=[str(path)])
    noun = validate_sources(recipe, folder, seed=0, name="trial", advance=steps.append)
    assert sum(steps) == UNITS
    records = load_split(folder / "train.jsonl")
    assert len(records) == noun.rows["train"]
    assert [record.line() + "\n" for record in records] == (
        (folder / "train.jsonl").read_bytes().decode().splitlines(keepends=True)
    )
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "train.jsonl", "validation.jsonl", "test.jsonl", "quarantine.jsonl", "report.json", "report.md", "report.html",
        "shown/quarantine.jsonl",
    }  # fmt: skip


def test_a_line_separator_inside_a_text_does_not_split_a_record(tmp_path, validate):
    rows = [
        {"instruction": "one\u2028two\x0bthree"[:7] + row["instruction"], "output": "a\u2029b"} for row in alpaca(60)
    ]
    found = validate(write_lines(tmp_path / "a.jsonl", rows))
    assert len(found.everything) == 60
