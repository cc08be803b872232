import csv
import gzip

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from geopak.data import delimited
from geopak.data.delimited import MAX_LINES_OF_A_ROW, DelimitedFile
from geopak.errors import TableError

HEADER = "id,path,latitude,longitude,remark"
COLUMNS = HEADER.split(",")


def rows_of(path, block_bytes=1 << 20):
    file = DelimitedFile(path, block_bytes)
    return [row for block in file.blocks(file.names) for row in block.to_pylist()]


def read(folder, body, block_bytes=1 << 20, header=HEADER):
    path = folder / "t.csv"
    path.write_bytes(header.encode() + b"\n" + (body if isinstance(body, bytes) else body.encode()))
    return rows_of(path, block_bytes)


def values(row):
    return [row[name] for name in COLUMNS]


def test_values_and_lines(tmp_path):
    rows = read(tmp_path, 'p1, a.jpg ,25.50,67.25,\np2,"b,c.jpg",25,67,"says ""hi"""\n')
    assert [values(row) for row in rows] == [
        ["p1", "a.jpg", "25.50", "67.25", None],
        ["p2", "b,c.jpg", "25", "67", 'says "hi"'],
    ]
    assert [row["line"] for row in rows] == [2, 3]
    assert [row["malformed"] for row in rows] == [None, None]


def test_a_row_over_several_lines_stands_where_it_begins(tmp_path):
    rows = read(tmp_path, '1,a,25,67,"first\nsecond, with comma\n\nfourth"\n\n  \n2,b,25,67,x\n')
    assert [row["line"] for row in rows] == [2, 8]
    assert rows[0]["remark"] == "first\nsecond, with comma\n\nfourth"
    assert [row["malformed"] for row in rows] == [None, None]


GOOD = ["good,g.jpg,25.5,67.5,fine"]
BAD_LINES = {
    "too many": (b"1,a,25,67,x,y,z", "has 7 values where the header names 5 columns"),
    "too few": (b"1,a", "has 2 values where the header names 5 columns"),
    "decimal commas": (b"1,a,25,5,67,5,x", "put quotes around a value that holds ','"),
    "not UTF-8": (b"1,\xe4.jpg,25,67,x", "not UTF-8 text"),
    "not UTF-8, quoted": (b'1,"\xe4.jpg",25,67,x', "'\\\\xe4.jpg'"),
    "NUL": (b"1,a\0b,25,67,x", "NUL byte"),
    "open quote": (b'1,"a,25,67,x', "a quote opens and is not closed"),
    "open quote at the end": (b'1,a,25,67,"', "a quote opens and is not closed"),
    "return": (b"1,a\rb,25,67,x", "carriage return"),
    "very long": (b'1,"' + b"a" * 200_000 + b'",25,67,x\r', None),
}


@pytest.mark.parametrize("kind", BAD_LINES)
@pytest.mark.parametrize("block_bytes", [7, 64, 1 << 20])
@pytest.mark.parametrize("before", [1, 0])
@pytest.mark.parametrize("after", [2, 0])
def test_a_bad_line_costs_its_own_row_only(tmp_path, kind, block_bytes, before, after):
    line, needle = BAD_LINES[kind]
    good = GOOD[0].encode()
    rows = read(tmp_path, b"\n".join([*[good] * before, line, *[good] * after]), block_bytes)
    assert [row["line"] for row in rows] == list(range(2, 3 + before + after))
    bad = rows.pop(before)
    if needle:
        assert needle in bad["malformed"]
        assert bad["id"] == "1"
    for row in rows:
        assert row["malformed"] is None
        assert values(row) == GOOD[0].split(",")


def test_an_open_quote_does_not_run_to_a_later_quote(tmp_path):
    body = '1,"a,25,67,x\n2,b,25,67,y\n3,c",25,67,z\n4,d,25,67,"w"\n'
    rows = read(tmp_path, body)
    assert [row["line"] for row in rows] == [2, 3, 4, 5]
    assert [row["malformed"] is None for row in rows] == [False, True, True, True]
    assert values(rows[1]) == ["2", "b", "25", "67", "y"]


def test_a_quote_is_not_looked_for_without_end(tmp_path):
    text = "just text\n" * (3 * MAX_LINES_OF_A_ROW)
    rows = read(tmp_path, f'1,"a\n{text}2,b,25,67,y\n', block_bytes=500)
    assert "not closed" in rows[0]["malformed"]
    assert len(rows) == 3 * MAX_LINES_OF_A_ROW + 2
    assert values(rows[-1]) == ["2", "b", "25", "67", "y"]


def test_a_long_value_over_block_borders(tmp_path):
    remark = "\n".join(f"line {k}" for k in range(300))
    rows = read(tmp_path, f'1,a,25,67,"{remark}"\n2,b,25,67,y\n', block_bytes=100)
    assert rows[0]["remark"] == remark
    assert [row["line"] for row in rows] == [2, 302]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark(tmp_path, end, bom):
    path = tmp_path / "t.csv"
    path.write_bytes(bom + end.join([HEADER, *GOOD * 3, ""]).encode())
    rows = rows_of(path, block_bytes=50)
    assert [values(row) for row in rows] == [GOOD[0].split(",")] * 3
    assert [row["line"] for row in rows] == [2, 3, 4]


@pytest.mark.parametrize(
    ("name", "delimiter"),
    [("t.csv", ","), ("t.tsv", "\t"), ("t.txt", ","), ("t.txt", "\t"), ("t.csv", ";")],
)
def test_delimiters(tmp_path, name, delimiter):
    path = tmp_path / name
    lines = [HEADER, "1,a,25,67,x"]
    path.write_text("\n".join(line.replace(",", delimiter) for line in lines))
    assert values(rows_of(path)[0]) == ["1", "a", "25", "67", "x"]


def test_gzip(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\n{GOOD[0]}\n".encode() * 1))
    assert values(rows_of(path)[0]) == GOOD[0].split(",")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TableError, match=r"t\.csv\.gz cannot be read to its end"):
        rows_of(path)


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b"", "it is empty"),
        (b"\n\n  \n", "it is empty"),
        (b"PK\x03\x04 zipped", "an Excel workbook"),
        ("id,path".encode("utf-16"), "UTF-16 text"),
        (b"\xe4,b\n1,2\n", "line 1: the header is not UTF-8"),
        (b"\na\0,b\n1,2\n", "line 2: the header holds NUL bytes"),
        (b'id,"path\n1,2\n', "line 1: the header cannot be read"),
    ],
)
def test_what_is_no_table(tmp_path, content, needle):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TableError, match=needle):
        rows_of(path)


def test_a_header_over_lines_and_after_blank_ones(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\n"id\nof it",path\n1,a\n')
    file = DelimitedFile(path)
    assert file.names == ["id of it", "path"]
    for block_bytes in (3, 1000):
        assert rows_of(path, block_bytes)[0]["line"] == 4


def test_a_header_alone(tmp_path):
    path = tmp_path / "t.csv"
    for end in ("", "\n"):
        path.write_text(HEADER + end)
        assert rows_of(path) == []


FIELD = st.text(alphabet='ab,"\n\r \té\0', max_size=5) | st.sampled_from(["25.5", "67"])
LINE = st.lists(FIELD, min_size=1, max_size=6).map(",".join).map(str.encode) | st.sampled_from(
    [b"", b"  ", b"\xff", b'"', b'1,"x', b"good,g.jpg,25.5,67.5,fine", b'q,"g.jpg",1,2,"a ""b"" c"']
)


@given(st.lists(LINE, max_size=12), st.sampled_from([3, 40, 1 << 20]))
@example([b'"25.5', b"b"], 40)
def test_blocks_make_no_difference(tmp_path_factory, lines, block_bytes):
    """What is read block by block by pyarrow is what is read line by line."""
    folder = tmp_path_factory.mktemp("t")
    body = b"\n".join(lines)
    once = read(folder, body)
    assert read(folder, body, block_bytes) == once
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited._Rows, "parse_plain", lambda *_: None)
        assert read(folder, body) == once


@given(st.binary(max_size=300))
@example(b'"')
@example(b"\n")
@example(b"\xef\xbb\xbf\n")
def test_any_bytes_are_rows(tmp_path_factory, body):
    lines = body.split(b"\n")
    rows = read(tmp_path_factory.mktemp("t"), body)
    starts = [row["line"] for row in rows]
    assert starts == sorted(set(starts))
    spoken_for = set(starts)
    for number, line in enumerate(lines, start=2):
        if line.strip(b" \r"):
            # Begins a row, or belongs to one that began before.
            assert number in spoken_for or any(start < number for start in starts)


@given(st.lists(LINE, max_size=8), st.integers(0, 8), st.integers(0, 8))
def test_a_plain_row_is_found_among_any_others(tmp_path_factory, lines, here, there):
    lines = [line.replace(b"\n", b"") for line in lines]
    for place in sorted({min(here, len(lines)), min(there, len(lines))}, reverse=True):
        lines.insert(place, b"unique,u.jpg,24.86,67.01,plain")
    rows = read(tmp_path_factory.mktemp("t"), b"\n".join(lines))
    found = [row["line"] for row in rows if values(row)[0] == "unique"]
    assert found == [k for k, line in enumerate(lines, start=2) if line.startswith(b"unique")]
    assert all(row["malformed"] is None for row in rows if values(row)[0] == "unique")


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
            min_size=5,
            max_size=5,
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 200),
)
def test_what_the_csv_module_writes_is_read(tmp_path_factory, table, block_bytes):
    path = tmp_path_factory.mktemp("t") / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(table)
    rows = rows_of(path, block_bytes)
    assert len(rows) == len(table)
    for row, written in zip(rows, table, strict=True):
        assert row["malformed"] is None
        assert values(row) == [value.strip() or None for value in written]


def test_many_rows(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"p{k},{k}.jpg,{rng.uniform(20, 30):.6f},67.5,x" for k in range(5000)]
    bad = set(rng.choice(5000, 40, replace=False).tolist())
    for k in bad:
        lines[k] = lines[k].replace("x", "x,y")
    rows = read(tmp_path, "\n".join(lines), block_bytes=10_000)
    assert [row["line"] for row in rows] == list(range(2, 5002))
    assert {k for k, row in enumerate(rows) if row["malformed"]} == bad
    assert [row["id"] for row in rows] == [f"p{k}" for k in range(5000)]
