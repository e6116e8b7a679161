"""Examples from CSV files and from SQLite: columns by name, labels by name, bad rows counted and left out."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edge_agent.data import DataSettings
from tests.agent.datasets_at_hand import inputs, read, refusal, targets


def test_a_folder_of_csv_files_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("y;b;a\n2;0.5;-1e3\n")
    (tmp_path / "a.csv").write_text("a,b,y\n1,2,0\n\n3,4.5,1\n", encoding="utf-8-sig")
    (tmp_path / "notes.txt").write_text("not data")
    dataset = read(tmp_path, (2,), columns={"x": ("a", "b")})
    assert inputs(dataset).tolist() == [[1, 2], [3, 4.5], [-1000, 0.5]]
    assert inputs(dataset).dtype == np.float32
    assert targets(dataset) == [0, 1, 2]
    assert dataset.left_out.count == 0


def test_the_only_input_takes_every_column_but_the_target_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("c0,c1,label,c2,c3\n1,2,1,3,4\n")
    dataset = read(tmp_path, (2, 2), target="label")
    assert inputs(dataset).tolist() == [[[1, 2], [3, 4]]]
    assert targets(dataset) == [1]


def test_labels_are_numbered_by_the_names_in_the_settings_and_never_by_what_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,y\n1,walk\n2,run\n")
    assert targets(read(tmp_path / "a.csv", (1,), classes=("sit", "run", "walk"))) == [2, 1]
    message = refusal(tmp_path / "a.csv", (1,))
    assert message.startswith(f"{tmp_path / 'a.csv'}: its label is 'walk'; list the labels' names in data.classes")


def test_rows_that_cannot_be_used_are_counted_by_why_and_left_out(tmp_path: Path) -> None:
    good = "".join(f"{i},{i},1\n" for i in range(60))
    (tmp_path / "a.csv").write_text(f"a,b,y\n1,nan,0\n2,,0\n3,x,0\n4,4\n{good}5,5,7\n")
    dataset = read(tmp_path, (2,))
    left_out = dataset.left_out
    assert len(dataset) == 60
    assert inputs(dataset).tolist() == [[i, i] for i in range(60)]
    assert (left_out.labels, left_out.non_finite, left_out.unreadable, left_out.files) == (1, 2, 2, 0)
    assert left_out.count == 5
    assert "a.csv: row 3: 'x' is no number" in str(left_out)
    assert "y[62] is 7, out of 0 to 2" in str(left_out)
    assert "So are 5 of 65 examples" in refusal(tmp_path, (2,), most_left_out=0.05)
    assert "over data.most_left_out = 0.05" in refusal(tmp_path, (2,), most_left_out=0.05)


def test_a_bad_file_among_many_is_named_counted_and_left_out(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i:02}.csv").write_text("a,y\n1,0\n")
    (tmp_path / "05.csv").write_bytes(b"a,y\n\xff\xfe,0\n")
    dataset = read(tmp_path, (1,))
    assert len(dataset) == 11
    assert dataset.left_out.files == 1
    assert "05.csv: cannot be read" in str(dataset.left_out)
    (tmp_path / "06.csv").write_text("other,y\n1,0\n")
    assert len(read(tmp_path, (1,), columns={"x": ("a",)}, most_left_out=0.2)) == 10
    assert "05.csv: cannot be read" in refusal(tmp_path, (1,), columns={"x": ("a",)})


@pytest.mark.parametrize(
    ("text", "settings", "says"),
    [
        ("a,b\n1,2\n", {}, "no column 'y' for y (found: a, b); set data.columns.y, or data.inputs and data.target"),
        ("a,b,c,y\n1,2,3,0\n", {}, "3 columns for x, and values takes 2 values (2,)"),
        ("a,y\n1,0\n", {}, "row 1: one number for x, which takes 2; list its columns in data.columns.x"),
        ("a,y\n1,0\n", {"columns": {"x": ("a", "gone")}}, "no column 'gone' for x"),
        ("", {}, "0 columns for x"),
        ("a,b,y\n", {}, "x is empty"),
        ('a,b,y\n1,"2,0\n', {}, "unexpected end of data"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_its_columns(
    tmp_path: Path, text: str, settings: dict[str, object], says: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert says in refusal(tmp_path / "a.csv", (2,), **settings)


def test_a_table_larger_than_the_limit_is_refused_while_it_is_read(tmp_path: Path) -> None:
    row = ",".join(["1"] * 64)
    names = ",".join(f"c{i}" for i in range(64))
    (tmp_path / "a.csv").write_text(f"{names},y\n" + f"{row},0\n" * 2048)
    message = refusal(tmp_path / "a.csv", (64,), memory_mib=1)
    assert "over data.memory_mib = 1; raise that" in message
    assert len(read(tmp_path / "a.csv", (64,), memory_mib=2)) == 2048


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "log.sqlite"
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("CREATE TABLE readings (at INTEGER, a REAL, b REAL, state TEXT, number INTEGER, raw BLOB)")
        for at in range(30):
            raw = np.array([at, -at], "<f4").tobytes()
            sql.execute("INSERT INTO readings VALUES (?, ?, ?, ?, ?, ?)", (at, at, at / 2, "on", at % 3, raw))
        sql.commit()
        yield path


def test_a_query_gives_the_examples_and_their_order(database: Path) -> None:
    query = "SELECT a, b, number AS y FROM readings WHERE at >= 10 ORDER BY at DESC"
    dataset = read(database, (2,), query=query)
    assert inputs(dataset)[:2].tolist() == [[29, 14.5], [28, 14]]
    assert targets(dataset) == [at % 3 for at in range(29, 9, -1)]


def test_a_blob_of_floats_is_a_whole_input_and_text_a_label(database: Path) -> None:
    query = "SELECT raw AS x, state AS y FROM readings ORDER BY at"
    dataset = read(database, (2, 1), query=query, classes=("off", "on"))
    assert inputs(dataset)[3].tolist() == [[3], [-3]]
    assert set(targets(dataset)) == {1}


def test_rows_without_values_are_counted_and_left_out(database: Path) -> None:
    query = (
        "SELECT CASE at WHEN 3 THEN NULL ELSE a END AS a, CASE at WHEN 4 THEN 9 ELSE number END AS y "
        "FROM readings ORDER BY at"
    )
    dataset = read(database, (1,), query=query)
    assert (len(dataset), dataset.left_out.non_finite, dataset.left_out.labels) == (28, 1, 1)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", "data.query: say which rows"),
        ("SELECT absent FROM readings", "no such column: absent"),
        ("DELETE FROM readings", "not authorized"),
        ("ATTACH 'other.sqlite' AS other", "not authorized"),
        ("SELECT a, number AS y FROM readings; DROP TABLE readings", "one statement"),
        ("SELECT a FROM readings", "no column 'y'"),
    ],
)
def test_a_query_that_is_none_is_refused_and_changes_nothing(database: Path, query: str, says: str) -> None:
    message = refusal(database, (1,), query=query)
    assert says in message
    with closing(sqlite3.connect(database)) as sql:
        assert sql.execute("SELECT count(*) FROM readings").fetchone() == (30,)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT raw AS x, 9e999 AS y FROM readings", "inf is no whole number"),
        ("SELECT raw AS x, 0.5 AS y FROM readings", "0.5 is no whole number"),
        ("SELECT zeroblob(7) AS x, 0 AS y FROM readings", "7 bytes for x, which takes 2 float32 of 4 each"),
        ("SELECT raw AS a, raw AS b, 0 AS y FROM readings", "bytes where a number is due"),
        ("SELECT a AS x, 0 AS y FROM readings", "one number for x, which takes 2"),
    ],
)
def test_a_value_that_is_not_what_its_column_should_hold_is_named(database: Path, query: str, says: str) -> None:
    assert f"row 1: {says}" in refusal(database, (1, 2), query=query)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("nothing of the kind, and long enough to have a header" * 40)
    assert "file is not a database; check data.path" in refusal(tmp_path / "a.db", (1,), query="SELECT a, y FROM t")


def test_settings_of_tables_are_checked() -> None:
    with pytest.raises(ValueError, match="columns: 'z' is none of the inputs and targets"):
        DataSettings(path="a", columns={"z": ("a",)})
    with pytest.raises(ValueError, match='query: is for kind = "sqlite"'):
        DataSettings(path="a", kind="csv", query="SELECT 1")
    with pytest.raises(ValueError, match="classes: a name is there twice"):
        DataSettings(path="a", classes=("a", "a"))
