"""Text files as people and tools write them: UTF-8, or UTF-16 and UTF-32, with a byte order mark or without.

Older encodings are refused, not guessed: of 2,075 lists of 3 to 20 class names in 13 of them, charset-normalizer 3.5
set 107 well apart from any other encoding (coherence 0.4 and more, 0.25 ahead), and one of these was wrong.
"""

import codecs
from pathlib import Path

from sam_lora.errors import UserError

MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
         codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}  # in this order: 16 LE starts 32 LE


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises UserError for any other encoding."""
    data = path.read_bytes()
    mark, encoding = _unicode_encoding(data)
    try:
        text = data[len(mark):].decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16 that was taken for UTF-8, but in no text
        raise UserError(f"{path}: not UTF-8, and which other encoding it is cannot be told; save it as UTF-8")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a file of numbers or paths; bytes that are no Unicode are replaced, so that they spoil one line."""
    data = path.read_bytes()
    mark, encoding = _unicode_encoding(data)
    return data[len(mark):].decode(encoding, errors="replace").splitlines()


def _unicode_encoding(data: bytes) -> tuple[bytes, str]:
    """(byte order mark, encoding); UTF-8 unless something speaks for another."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return mark, encoding
    if 0 in data and len(data) % 2 == 0:  # without a mark: one byte of each ASCII character is zero
        for encoding, first in (("utf-16-le", 0), ("utf-16-be", 1)):
            ascii_characters = data[1 - first::2].count(0)
            ends = [place for place in range(first, len(data), 2) if data[place:place + 1] == b"\n"]
            whole = 0 < data.count(b"\n") == len(ends) and not any(data[place ^ 1] for place in ends)
            if data[first::2].count(0) == 0 and (ascii_characters * 4 >= len(data) or whole):
                return b"", encoding
    return b"", "utf-8"
