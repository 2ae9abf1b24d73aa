"""Recognizes files that are not JSON Lines in UTF-8, so that a single error names their format."""

from __future__ import annotations

import re
from typing import Final

UTF8_IS_WANTED: Final = "A batch's input must be JSON lines in UTF-8."
_PACKED: Final = {
    b"\x1f\x8b": "compressed with gzip",
    b"PK\x03\x04": "a ZIP archive",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"PAR1": "a Parquet file",
}
_WIDE: Final = {
    b"\xff\xfe\x00\x00": "UTF-32 (little endian)",
    b"\x00\x00\xfe\xff": "UTF-32 (big endian)",
    b"\xff\xfe": "UTF-16 (little endian)",
    b"\xfe\xff": "UTF-16 (big endian)",
}
_OPENED: Final = re.compile(rb'\{[ \t\r]*\n\s*"')
"""The beginning of a JSON object that continues on the next line."""


def file_error(head: bytes) -> str | None:
    """Return an error message if the first bytes of a file show that it is not JSON Lines in UTF-8, else ``None``."""
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"The file is {name}. {UTF8_IS_WANTED} Unpack it, and upload it again."
    name = next((name for mark, name in _WIDE.items() if head.startswith(mark)), None) or _wide_without_mark(head)
    if name:
        return f"The file is in {name}, as some Windows programs write it. {UTF8_IS_WANTED} Save it as UTF-8."
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if first.startswith(b"["):
        return f"The file is a JSON array. {UTF8_IS_WANTED} Write one object on each line, without brackets and commas."
    if _OPENED.match(first):
        return f"The file has JSON over several lines (pretty-printed). {UTF8_IS_WANTED} Write one object on each line."
    return None


def _wide_without_mark(head: bytes) -> str | None:
    # JSON begins with an ASCII character, whose other bytes are zero in UTF-16 and UTF-32.
    zeros = [not byte for byte in head[:4]]
    if zeros == [False, True, True, True] or zeros == [True, True, True, False]:
        return "UTF-32"
    if zeros[:2] == [False, True]:
        return "UTF-16 (little endian)"
    return "UTF-16 (big endian)" if zeros[:2] == [True, False] else None


def line_error(data: bytes) -> str | None:
    """Return an error message if a line is not valid JSON because of its encoding, else ``None``."""
    if b"\0" in data:
        return f"This line holds NUL bytes, as UTF-16 and UTF-32 do. {UTF8_IS_WANTED} Convert the file to it."
    try:
        data.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02X} at position {error.start + 1}"
        return f"This line is not UTF-8 ({byte}){_looks_like(data)}. {UTF8_IS_WANTED} Convert the file to it."
    if data.startswith(b"\xef\xbb\xbf"):
        return (
            "This line begins with a UTF-8 byte order mark (BOM), which may stand only at the beginning of a file; "
            f"files that were joined have one in the middle. {UTF8_IS_WANTED} Remove the mark."
        )
    return None


def _looks_like(data: bytes) -> str:
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:
        return ""
    return ": it looks like Windows-1252 (cp1252) or ISO-8859-1 (Latin-1)"
