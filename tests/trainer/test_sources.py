"""Every kind of source read by the real code; remote addresses by fsspec's memory:// and file://."""

import csv
import gzip
import json
import os
import re
import tracemalloc

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.conftest import SHARED
from trainer.config.job import Source
from trainer.data.sources import Place, Read, read_source, source_files
from trainer.errors import ConfigError

ROWS = [{"text": f"row {number} \u4e2d\u2028\U0001f600", "n": number} for number in range(5)]


UNICODE = st.text(st.characters(codec="utf-8"))


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zst(data):
    target = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(target, "zstd") as stream:
        stream.write(data)
    return target.getvalue().to_pybytes()


def parquet(rows):
    target = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target, row_group_size=2)
    return target.getvalue().to_pybytes()


def csv_bytes(rows):
    lines = ["text,n", *[f'"{row["text"]}",{row["n"]}' for row in rows]]
    return "\r\n".join(lines).encode()


def reads(path, **fields):
    return list(read_source(Source(path=str(path), **fields)))


def rows(path, **fields):
    return [read.row for read in reads(path, **fields)]


def problems(path):
    return [(read.place.line, read.problem) for read in reads(path) if read.row is None]


def written(tmp_path, name, data):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return file


KINDS = {
    "rows.jsonl": jsonl(ROWS),
    "rows.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": jsonl(ROWS),
    "rows.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "rows.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "rows.gz": gzip.compress(jsonl(ROWS)),
    "rows.jsonl.zst": zst(jsonl(ROWS)),
    "two-frames.jsonl.zst": zst(jsonl(ROWS[:2])) + zst(jsonl(ROWS[2:])),
    "two-members.jsonl.gz": gzip.compress(jsonl(ROWS[:2])) + gzip.compress(jsonl(ROWS[2:])),
    "rows.parquet": parquet(ROWS),
    "a [b] *.jsonl": jsonl(ROWS),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    file = written(tmp_path, name, KINDS[name])
    assert rows(file) == ROWS
    assert source_files(Source(path=str(file))) == [str(file)]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.csv.zst"])
def test_csv_values_are_text_and_a_row_may_span_lines(tmp_path, name):
    data = b'\xef\xbb\xbftext,n\r\n"a, ""b""\nc",1\r\n\r\nplain,2'
    pack = {".gz": gzip.compress, ".zst": zst}.get(name[-4:].lstrip("v"), bytes)
    file = written(tmp_path, name, pack(data))
    assert reads(file) == [
        Read(Place(str(file), 2), {"text": 'a, "b"\nc', "n": "1"}),
        Read(Place(str(file), 5), {"text": "plain", "n": "2"}),
    ]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_an_fsspec_address_is_read_by_the_same_code(tmp_path, protocol, name):
    address = f"memory:/{tmp_path}/{name}" if protocol == "memory" else f"file://{tmp_path}/{name}"
    with fsspec.open(address.replace("[b] *", "b"), "wb") as file:
        file.write(KINDS[name])
    assert rows(address.replace("[b] *", "b")) == ROWS


def test_a_folder_behind_an_address_gives_its_addresses(tmp_path):
    system = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a/c.jsonl.gz", ".hidden.jsonl"):
        system.pipe(f"{tmp_path}/{name}", KINDS["rows.jsonl.gz"] if name.endswith("gz") else KINDS["rows.jsonl"])
    expected = [f"memory://{tmp_path}/a/c.jsonl.gz", f"memory://{tmp_path}/b.jsonl"]
    assert source_files(Source(path=f"memory:/{tmp_path}")) == expected
    assert source_files(Source(path=f"memory:/{tmp_path}/**/*.jsonl*")) == expected
    assert rows(f"memory:/{tmp_path}") == ROWS + ROWS


def test_a_set_of_one_row_is_read_whole(tmp_path):  # xtuner#336, #370, #944: few rows made an empty set or a crash
    assert reads(written(tmp_path, "one.json", "[{}]")) == [Read(Place(str(tmp_path / "one.json"), 1), {})]


# folders and globs

KNOWN = "a file, or a folder with files, that end in .json, .jsonl, .csv, .parquet (.gz and .zst may follow)"


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a/2.json", "a/1.jsonl", "a/deep/x.csv", "c.parquet"):
        written(tmp_path, name, {".csv": b"n\n1\n", ".parquet": parquet([{"n": 1}])}.get(name[name.rindex(".") :], b""))
    for name in (".hidden.jsonl", ".git/x.jsonl", "a/.cache/y.jsonl", "a.txt", "README.md", "a.tar.gz", "x.parquet.gz"):
        written(tmp_path, name, b"not data")
    return tmp_path


def test_a_folder_is_read_to_any_depth_sorted_without_hidden_and_other_files(folder, monkeypatch):
    names = ["a/1.jsonl", "a/2.json", "a/deep/x.csv", "b.jsonl", "c.parquet"]
    assert source_files(Source(path=str(folder))) == [str(folder / name) for name in names]
    assert source_files(Source(path=f"{folder}/")) == [str(folder / name) for name in names]
    monkeypatch.chdir(folder)
    assert source_files(Source(path=".")) == names
    assert source_files(Source(path="a")) == names[:3]


def test_globs_name_files_and_folders(folder, monkeypatch):
    assert source_files(Source(path=f"{folder}/*.jsonl")) == [str(folder / "b.jsonl")]
    assert source_files(Source(path=f"{folder}/[ab]*")) == [
        str(folder / name) for name in ("a/1.jsonl", "a/2.json", "a/deep/x.csv", "b.jsonl")
    ]
    monkeypatch.chdir(folder)
    assert source_files(Source(path="**/*.jsonl")) == ["a/1.jsonl", "b.jsonl"]


def test_a_folder_under_a_hidden_one_is_read_when_it_is_named(folder):
    assert source_files(Source(path=str(folder / "a" / ".cache"))) == [str(folder / "a/.cache/y.jsonl")]


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert source_files(Source(path="~/b.jsonl")) == [str(folder / "b.jsonl")]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere.jsonl", "got nowhere.jsonl, allowed: a file or folder that exists (working directory: {cwd})"),
        ("./nowhere", "got ./nowhere, allowed: a file or folder that exists (working directory: {cwd})"),
        ("memory://nowhere", "got memory://nowhere, allowed: a file or folder that exists (working directory: {cwd})"),
        ("a/none*.jsonl", "got a/none*.jsonl, allowed: a file or folder that exists (working directory: {cwd})"),
        ("a.txt", f"got a.txt, allowed: {KNOWN}"),
        ("empty", f"got empty, allowed: {KNOWN}"),
        ("nothing://x/y", "nothing://x/y cannot be read: Protocol not known: nothing"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_an_error_that_says_what_may_be(folder, monkeypatch, path, said):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder)
    for call in (source_files, read_source):
        with pytest.raises(ConfigError) as error:
            call(Source(path=path))
        assert error.value.message == "data.sources: " + said.format(cwd=os.getcwd())


# lines


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_byte_order_mark_blank_lines_crlf_and_no_last_line_end_are_fine(tmp_path, end, last):
    data = b"\xef\xbb\xbf" + end.join([b'{"n": 1}', b"", b"  ", b'{"n": 2}']) + (end if last else b"")
    file = written(tmp_path, "rows.jsonl", data)
    assert reads(file) == [Read(Place(str(file), 1), {"n": 1}), Read(Place(str(file), 4), {"n": 2})]
    assert rows(written(tmp_path, "rows.json", data)) == [{"n": 1}, {"n": 2}]


BROKEN = (
    b'{"n": 1}\n{"n": \n[1]\n"x"\nnull\n{"n": "\xff"}\n{"n": "\\ud800"}\n' + b"[" * 5000 + b'\n{"n": 2} x\n{"n": 3}'
)


@pytest.mark.parametrize(("name", "pack"), [("b.jsonl", bytes), ("b.jsonl.gz", gzip.compress), ("b.jsonl.zst", zst)])
def test_a_broken_line_is_a_problem_with_its_number_and_the_rest_is_read(tmp_path, name, pack):
    file = written(tmp_path, name, pack(BROKEN))
    assert [read.row for read in reads(file) if read.row] == [{"n": 1}, {"n": 3}]
    line = "expected an object on each line"
    assert problems(file) == [
        (2, f"got broken JSON (EOF while parsing a value at column 5), {line}"),
        (3, "got a list, expected an object"),
        (4, "got text 'x', expected an object"),
        (5, "got null, expected an object"),
        (6, f"got broken JSON (invalid unicode code point at column 8), {line}"),
        (7, f"got broken JSON (unexpected end of hex escape at column 14), {line}"),
        (8, f"got broken JSON (recursion limit exceeded at column 202), {line}"),
        (9, f"got broken JSON (trailing characters at column 10), {line}"),
    ]


DOUBLED = [
    '{"question": "LOST", "question": "Q", "answer": "A"}',
    '{"question":"LOST","question" :"Q","answer":"A"}',
    '{"messages": [{"role": "user", "content": "LOST", "content": "Q \\": :) 中"}]}',
    '{"messages": [{"tool_calls": [{"name": "f", "arguments": {"x": 1, "x": 2}}]}]}',
    '{"a\\\\": 1, "a\\\\": 2}',
    '{"\\u0061": 1, "a": 2, "b": {}}',
]
SINGLE = ['{"a": "\\":", "b": ":x", "c": [{"a": 1}, {"a": 2}], "d" : {"a": {}}}',
          '{"a\\\\": "a\\\\", "": "\\"a\\": 1"}']  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("line", DOUBLED)
def test_a_key_that_stands_twice_is_a_problem_of_its_row_alone(tmp_path, kind, line):
    lines = [SINGLE[0], line, SINGLE[1]]
    text = "\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]"
    file = written(tmp_path, f"rows.{kind}", text)
    [(place, said)] = problems(file)
    assert place == 2 and re.fullmatch("got the key '.*' more than once in an object, expected each key once", said)
    assert [read.row for read in reads(file) if read.row] == [json.loads(one) for one in SINGLE]


def test_nan_infinity_and_large_numbers_do_not_end_a_file(tmp_path):
    found = rows(written(tmp_path, "n.jsonl", '{"n": NaN}\n{"n": -Infinity}\n{"n": 1e999}\n{"n": ' + "9" * 400 + "}"))
    assert str([row["n"] for row in found[:3]]) == "[nan, -inf, inf]"
    assert found[3]["n"] == int("9" * 400)


def test_items_of_an_array_that_are_no_objects_are_problems_with_their_number(tmp_path):
    file = written(tmp_path, "rows.json", '[{"n": 1}, 2, [{}], {"n": 3}]')
    assert problems(file) == [(2, "got 2, expected an object"), (3, "got a list, expected an object")]
    assert [read.place.line for read in reads(file) if read.row] == [1, 4]


def test_a_broken_array_says_line_and_column_and_none_of_its_rows_is_taken(tmp_path):
    file = written(tmp_path, "rows.json", '[\n {"n": 1},\n {"n": }\n]')
    with pytest.raises(ConfigError) as error:
        reads(file)
    assert error.value.message == (
        f"data.sources: {file}: got broken JSON (expected value at line 3 column 8), expected an array of objects"
    )


def test_broken_csv_lines_are_problems_with_their_number(tmp_path):
    data = b'a,b\n1,2\n1,2,3\n1\n"x" y,2\n\xff,2\n3,4\n"not closed,5\n'
    file = written(tmp_path, "rows.csv", data)
    assert [read.row for read in reads(file) if read.row] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert problems(file) == [
        (3, "got 3 values, expected 2 (a, b)"),
        (4, "got 1 values, expected 2 (a, b)"),
        (5, "got broken csv (',' expected after '\"'), expected quotes in pairs around a value"),
        (6, "got bytes that are no UTF-8, expected UTF-8"),
        (8, "got broken csv (unexpected end of data), expected quotes in pairs around a value"),
    ]


def test_a_csv_value_may_be_longer_than_the_librarys_limit(tmp_path):
    assert len(rows(written(tmp_path, "long.csv", "a\n" + "x" * 200_000))[0]["a"]) == 200_000


@pytest.mark.parametrize("name", ["e.jsonl", "e.json", "e.csv", "e.jsonl.gz", "e.jsonl.zst", "e.parquet", "head.csv"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    empty = {
        "e.jsonl.gz": gzip.compress(b""), "e.jsonl.zst": zst(b""), "head.csv": b"a,b\n",
        "e.parquet": parquet([{"n": 1}][:0]),
    }  # fmt: skip
    assert reads(written(tmp_path, name, empty.get(name, b""))) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(jsonl(ROWS))[:-12]),
        ("cut.jsonl.zst", zst(jsonl(ROWS))[:-6]),
        ("cut.parquet", parquet(ROWS)[:-6]),
        ("other.jsonl.gz", b"not gzip at all"),
        ("damaged.jsonl.gz", gzip.compress(jsonl(ROWS))[:-8] + b"\0" * 8),
    ],
)
def test_a_file_that_is_cut_off_or_damaged_is_an_error_that_names_it(tmp_path, name, data):
    file = written(tmp_path, name, data)
    with pytest.raises(ConfigError, match=f"data.sources: .*{name} cannot be read: ."):
        reads(file)


def test_parquet_rows_are_counted_over_row_groups_and_nulls_inside_objects_are_left_out(tmp_path):
    data = [{"m": [{"role": "user", "calls": None}, {"role": "tool", "calls": [{"a": 1, "b": None}]}], "k": None},
            {"m": [{"role": "user", "calls": [{"b": 2}]}], "k": "x"}, {"m": None, "k": None}]  # fmt: skip
    file = written(tmp_path, "rows.parquet", parquet(data))
    assert [read.place.line for read in reads(file)] == [1, 2, 3]
    assert rows(file) == [
        {"m": [{"role": "user"}, {"role": "tool", "calls": [{"a": 1}]}], "k": None},
        {"m": [{"role": "user", "calls": [{"b": 2}]}], "k": "x"},
        {"m": None, "k": None},
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    many = [{"text": f"{number} " * 800, "n": number} for number in range(5000)]  # 20 MB
    make = {".csv": csv_bytes, ".parquet": one_row_group}.get(name[4:], jsonl)
    file = written(tmp_path, name, gzip.compress(make(many), 1) if name.endswith("gz") else make(many))
    outside = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    arrow = max(pyarrow.total_allocated_bytes() - outside for _ in read_source(Source(path=str(file))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
    assert arrow < 6 << 20


def one_row_group(rows):
    target = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target, use_dictionary=False)
    return target.getvalue().to_pybytes()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(UNICODE, UNICODE, max_size=3)))
def test_any_rows_come_back_from_json_lines(tmp_path_factory, written_rows):
    file = tmp_path_factory.getbasetemp() / "any-rows.jsonl"
    file.write_bytes(jsonl(written_rows))
    assert reads(file) == [Read(Place(str(file), line), row) for line, row in enumerate(written_rows, 1)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\r\0")), st.integers())))
def test_any_rows_come_back_from_csv(tmp_path_factory, values):
    file = tmp_path_factory.getbasetemp() / "any-rows.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "n"), *values])
    assert rows(file) == [{"text": text, "n": str(number)} for text, number in values]


# data sets of the hub, in a local folder with their card


@pytest.fixture
def card_folder(tmp_path):
    for split, chosen in (("train", ROWS), ("test", ROWS[:1])):
        written(tmp_path, f"set/data/{split}-00000-of-00001.parquet", parquet(chosen))
    written(tmp_path, "set/README.md", "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
            "    path: data/train-*\n  - split: test\n    path: data/test-*\n---\n# A set\n")  # fmt: skip
    return tmp_path / "set"


def test_a_data_set_with_a_card_is_read_by_its_split_and_test_rows_are_not_trained_on(card_folder):
    assert rows(card_folder) == ROWS
    assert rows(card_folder, split="test") == ROWS[:1]
    assert reads(card_folder)[0].place == (str(card_folder), 1)
    assert source_files(Source(path=str(card_folder))) == [str(card_folder / "data/train-00000-of-00001.parquet")]


@pytest.mark.parametrize(
    ("split", "expected"), [("train[:2]", ROWS[:2]), ("train[40%:]", ROWS[2:]), ("train+test", ROWS + ROWS[:1])]
)
def test_slices_and_sums_of_splits_are_read(card_folder, split, expected):
    assert rows(card_folder, split=split) == expected


def test_a_data_set_with_a_card_may_be_named_from_the_home_folder(card_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(card_folder.parent))
    assert rows("~/set", split="train[1:3]") == ROWS[1:3]


def test_a_split_of_plain_files_is_an_error_and_not_ignored(tmp_path):
    file = written(tmp_path, "rows.jsonl", jsonl(ROWS))
    with pytest.raises(ConfigError, match=r"got split train\[:2\], allowed: train \(files have no splits\)"):
        reads(file, split="train[:2]")


def test_a_split_that_is_not_there_is_an_error_with_those_that_are(card_folder):
    with pytest.raises(ConfigError, match=r"got split dev, allowed: train, test"):
        source_files(Source(path=str(card_folder), split="dev"))


def test_a_name_is_a_data_set_on_the_hub_and_an_error_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_files(Source(path="owner/name")) == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"data.sources: owner/name cannot be read: ."):
        reads("owner/name")


def test_real_files_are_read_whole():
    folder = SHARED / "sft"
    if not folder.exists():
        pytest.skip(f"no real rows: {folder} is absent")
    assert len(rows(folder)) == 2696
    assert not problems(folder)
