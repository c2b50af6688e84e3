"""Files that hold no records: the message names their kind, and nothing of what they hold."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import sqlite3
import tarfile
import zipfile

import numpy as np
import pytest

from tasks.data.sources import find, source_digest
from tasks.errors import InvalidData
from tasks.recipe.stages import DataRecipe
from tests.data.small_files import alpaca, write_lines

SECRET = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.csv", SECRET)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(SECRET))
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


KINDS = {
    "zstd": b"\x28\xb5\x2f\xfd" + SECRET.encode(),
    "bzip2": bz2.compress(SECRET.encode()),
    "xz": lzma.compress(SECRET.encode()),
    "a zip archive or an Excel workbook": zipped(),
    "a tar archive": tarred(),
    "gzip inside gzip": gzip.compress(gzip.compress(SECRET.encode())),
    "an old Excel or Word file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99),
    "a Python pickle": pickle.dumps({"a": SECRET}),
    "a NumPy array": array(),
    "a program": b"\x7fELF" + bytes(99),
    "a PDF": b"%PDF-1.7\n" + SECRET.encode(),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "a key or a certificate": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n".encode(),
    "a Git LFS pointer": f"version https://git-lfs.github.com/spec/v1\noid sha256:{SECRET}\n".encode(),
    "an HTML or XML page": f"<!DOCTYPE html>\n<html><title>{SECRET}</title>".encode(),
    "UTF-16": f"instruction,output\n{SECRET},x\n".encode("utf-16"),
    "UTF-16 without a byte order mark": f"instruction,output\n{SECRET},x\n".encode("utf-16-be"),
    "UTF-32": f"instruction,output\n{SECRET},x\n".encode("utf-32"),
}  # fmt: skip


def refused(path, validate) -> str:
    with pytest.raises(InvalidData) as caught:
        validate(path)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_named_whatever_it_is_called(tmp_path, validate, kind, name):
    path = tmp_path / name
    path.write_bytes(KINDS[kind])
    said = refused(path, validate)
    assert f"{name}: " in said and f"this is {kind}" in said
    assert SECRET not in said


def test_a_database_is_named(tmp_path, validate):
    with sqlite3.connect(tmp_path / "a.jsonl") as database:
        database.execute("create table a (b text)")
    assert "this is an SQLite database" in refused(tmp_path / "a.jsonl", validate)


@pytest.mark.parametrize("name", ["token", "token.txt", "token.json", "token.jsonl", "token.csv", "token.tsv"])
@pytest.mark.parametrize("content", [SECRET, f"{SECRET}\n", f"{SECRET}\n{SECRET}\n", f"  {SECRET} {SECRET}\n" * 9])
def test_a_file_of_secrets_is_refused_without_a_word_of_it(tmp_path, validate, name, content):
    (tmp_path / name).write_text(content)
    said = refused(tmp_path / name, validate)
    assert not any(SECRET[start : start + 8] in said for start in range(len(SECRET) - 8))
    assert name in said


def test_the_kind_of_the_first_character_is_said(tmp_path, validate):
    (tmp_path / "words").write_text("hello\nworld\n")
    assert "it begins with a letter" in refused(tmp_path / "words", validate)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_json_lines_under_the_name_of_a_table_are_named_and_not_printed(tmp_path, validate, name):
    path = write_lines(tmp_path / name, alpaca(5))
    said = refused(path, validate)
    assert "this is JSON lines, not CSV" in said and "beside" not in said
    path.write_text(json.dumps(alpaca(5), indent=1))
    assert "this is JSON, not CSV" in refused(path, validate)


def test_a_quoted_first_column_is_no_json(tmp_path, validate):
    rows = "".join(f"[{number}],{row['instruction']},{row['output']}\n" for number, row in enumerate(alpaca(60)))
    (tmp_path / "a.csv").write_text(f"[id],instruction,output\n{rows}")
    assert len(validate(tmp_path / "a.csv").everything) == 60


def test_what_is_no_file_is_said_for_what_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    address = socket.socket(socket.AF_UNIX)
    address.bind(str(tmp_path / "socket.jsonl"))
    said = {}
    for name in ("pipe", "link", "loop", "socket"):
        with pytest.raises(InvalidData) as caught:
            find(str(tmp_path / f"{name}.jsonl"))
        said[name] = str(caught.value)
    address.close()
    assert "a pipe" in said["pipe"] and "did you mean" not in said["pipe"]
    assert "a link to" in said["link"] and "gone.jsonl, which is not there" in said["link"]
    assert "a link to" in said["loop"]
    assert "a socket" in said["socket"]
    with pytest.raises(InvalidData, match="a device"):
        find("/dev/null")


def test_a_file_that_cannot_be_read_is_named():
    with pytest.raises(InvalidData, match=r"/proc/self/mem: cannot be read \("):
        source_digest(DataRecipe(train=["/proc/self/mem"]))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("a" * 5000, "File name too long"),
        ("a/" * 3000 + "b.jsonl", "File name too long"),
        ("~no-such-person/a.jsonl", "home"),
        ("data/**.jsonl", "Invalid pattern"),
        ("", "without a name"),
        ("a\0b.jsonl", "no such file"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused_in_few_words(written, said):
    with pytest.raises(InvalidData) as caught:
        find(written)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 500
