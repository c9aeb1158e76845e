"""The conversion report: accounts for every label row or annotation, converted or skipped with a reason."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sam_lora import contracts
from sam_lora.data.names import printable
from sam_lora.errors import UserError
from sam_lora.tables import table_writer

REPORT_COLUMNS = ("source_file", "source_id", "reason", "detail")

# reasons that both formats share
BOX_ONLY = "only a box, no outline (--boxes rectangle takes it)"
BOX_MARKED = "marked as a box by the export (--boxes rectangle takes it)"
TWICE = "the same annotation twice"
PHOTO_UNREADABLE = "photo cannot be read"
PHOTO_MISSING = "photo not found"
NO_PIXEL = "covers no pixel of the photo"
TOO_SMALL = "smaller than --min_size"
TOO_SMALL_IN_TILES = "smaller than --min_size in every tile"
RLE_SIZE = "RLE of another size than its photo"
# notes
RLE_RESIZED = "RLE scaled to its photo's size"


@dataclass
class ConversionReport:
    """Counts what is read (`take`), what becomes of it (`crop`, `skip`), and checks that nothing got lost.

    An object that tiles cut into several pieces is one crop; it also counts in `cut`, its pieces in `pieces`.
    """
    unit: str              # "label rows", "annotations"
    strict: bool = False
    total: int = 0         # label rows or annotations read
    crops: int = 0
    cut: int = 0
    pieces: int = 0
    skipped: list[tuple[str, str, str, str]] = field(default_factory=list)   # REPORT_COLUMNS
    notes: Counter = field(default_factory=Counter)
    doubts: dict[str, list] = field(default_factory=dict)    # text -> [count, first example]
    photos: dict[str, int] = field(default_factory=dict)     # "with objects": 12, in the order of printing
    classes: Counter = field(default_factory=Counter)        # class name -> pairs of image and mask

    def take(self) -> None:
        """Count one label row or annotation as read; each must end in `crop` or `skip`."""
        self.total += 1

    def crop(self, pieces: int = 1) -> None:
        """Count one label row or annotation as converted, to `pieces` pairs of image and mask."""
        self.crops += 1
        if pieces > 1:
            self.cut += 1
            self.pieces += pieces

    def skip(self, source_file: str, source_id: str, reason: str, detail: str = "") -> None:
        """Count one label row or annotation as skipped. Raises UserError with `strict`."""
        if self.strict:
            raise UserError(f"{source_file}: {source_id}: {reason}{f' ({detail})' if detail else ''}; --strict is on")
        self.skipped.append((printable(source_file), printable(source_id), reason, printable(detail)))

    def doubt(self, text: str, example: str) -> None:
        """Count one object that was converted, but may be wrong: what `text`, a plural, says of all such."""
        self.doubts.setdefault(text, [0, printable(example)])[0] += 1

    def close(self) -> None:
        """Check that everything taken is a crop or a skip. Raises UserError if there is not a single crop."""
        if self.total != self.crops + len(self.skipped):
            raise AssertionError(f"{self.total} {self.unit}, but {self.crops} crops + {len(self.skipped)} skipped")
        if self.crops == 0:
            counted = "; ".join(f"{count} {reason}{self._why(reason)}"
                                for reason, count in self._reasons().most_common())
            raise UserError(f"nothing to convert: {self.total} {self.unit}, no crop "
                            f"({counted or 'every photo is background'})")

    def write(self, folder: Path) -> None:
        """Write the skipped ones as a table."""
        with table_writer(folder / contracts.CONVERSION_REPORT_FILE, REPORT_COLUMNS) as table:
            table.writerows(self.skipped)

    def lines(self) -> Iterator[str]:
        """The summary, a line at a time."""
        yield f"{self.unit}: {self.total} = {self.crops} crops + {len(self.skipped)} skipped"
        for reason, count in sorted(self._reasons().items(), key=lambda item: (-item[1], item[0])):
            yield f"  skipped {count}: {reason}{self._why(reason)}"
        if self.cut:
            yield (f"  {self.cut} of these crops were too large for a tile and became {self.pieces} pieces: "
                   f"{self.crops - self.cut + self.pieces} pairs of image and mask")
        yield "photos: " + ", ".join(f"{count} {kind}" for kind, count in self.photos.items())
        if self.classes:
            yield "classes: " + ", ".join(f"{name} {count}" for name, count in self.classes.items())
        for note, count in self.notes.items():
            yield f"note: {printable(note)}" + (f" ({count} times)" if count > 1 else "")
        for text, (count, example) in self.doubts.items():
            yield f"note: {count} {text}, e.g. {example}"

    def _why(self, reason: str) -> str:
        """An example of why photos cannot be read: what kind of files they are tells what to do."""
        details = (detail for _, _, known, detail in self.skipped if known == reason == PHOTO_UNREADABLE)
        detail = next(details, "")
        return f", e.g. {detail}" if detail else ""

    def _reasons(self) -> Counter:
        return Counter(reason for _, _, reason, _ in self.skipped)
