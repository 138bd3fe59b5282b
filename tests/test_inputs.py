"""Files that somebody else wrote: whatever they are, an answer at once, and never a traceback."""

import math
import os
from pathlib import Path

import pytest

from gptbench.base.errors import InputError, printable
from gptbench.base.inputs import is_finite_number, open_regular, read_bytes, read_json, read_text


def refusal(read, path: Path, *arguments: int) -> str:
    with pytest.raises(InputError) as refused:
        read(path, *arguments)
    assert printable(str(path)) in str(refused.value)
    return str(refused.value)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for path in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero"), Path("/dev/urandom")):
        assert "not a regular file" in refusal(open_regular, path)
    assert "a folder" in refusal(open_regular, tmp_path)
    assert "No such file" in refusal(open_regular, tmp_path / "dangling")
    assert "null" in refusal(open_regular, Path("a\0b"))


def test_sizes_are_bounded_before_anything_is_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    assert "1,099,511,627,776 bytes, but at most 100 are read" in refusal(read_bytes, sparse, 100)
    (tmp_path / "exact").write_bytes(b"x" * 100)
    assert read_bytes(tmp_path / "exact", 100) == b"x" * 100


def test_text_is_utf8_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfHello\r\n")
    assert read_text(path, 100) == "Hello\r\n"
    path.write_bytes(b"ab\xff")
    assert "byte 2" in refusal(read_text, path, 100)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("{", "not JSON"),
        ("", "not JSON"),
    ],
    ids=["deep", "digits", "cut off", "empty"],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: str, wrong: str) -> None:
    path = tmp_path / "value.json"
    path.write_text(content)
    assert wrong in refusal(read_json, path)


def test_finite_numbers() -> None:
    assert is_finite_number(0) and is_finite_number(-1.5)
    for value in (math.nan, math.inf, True, None, "1", [1]):
        assert not is_finite_number(value)
