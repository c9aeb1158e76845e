"""Text of the user's own files, which Windows tools also write as UTF-16."""

import codecs
from pathlib import Path

from sam_lora.errors import UserError

BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))    # UTF-16's mark begins UTF-32's


def read_text(path: str | Path, exact: bool = True) -> str:
    """UTF-8, or UTF-16 or UTF-32 where a byte order mark or the zeros of Latin letters tell.

    What is none of them raises UserError, because any guess at its letters may be wrong; with `exact` off, for files
    of numbers, each letter that cannot be read becomes U+FFFD.
    """
    data = Path(path).read_bytes()
    encoding = next((encoding for mark, encoding in BOMS if data.startswith(mark)), None) or _without_mark(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if not exact:
            return data.decode(encoding, errors="replace")
        raise UserError(f"{path}: byte {error.start + 1} is not UTF-8; expected a text file that an editor saved as "
                        "UTF-8") from error


def _without_mark(data: bytes) -> str:
    start = data[:1000]
    for encoding, zeros, letters in (("utf-16-le", start[1::2], start[::2]), ("utf-16-be", start[::2], start[1::2])):
        if len(start) > 3 and zeros.count(0) > len(zeros) / 2 and letters.count(0) == 0:
            return encoding
    return "utf-8"
