"""A table of prompts for a folder of photos without ground truth: read, checked, and how its outputs are named."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sam_lora import contracts
from sam_lora.data.names import clean_name
from sam_lora.data.samples import Sample, check_samples, read_prompt
from sam_lora.errors import UserError
from sam_lora.results.requests import PhotoFolder
from sam_lora.tables import read_table

MADE_BY = "any editor: columns image, points and/or box, optionally point_labels, class_name"
UNNAMED = "object"   # the class of rows that name none: annotation tools want one


@dataclass(frozen=True)
class PromptedObject:
    """A row of the table of prompts."""

    image_id: int        # from 1, in the order of the table
    category_id: int     # likewise
    number: int          # among its image's objects, from 1
    stem: str            # path of its image's outputs without suffix

    @property
    def mask_name(self) -> str:
        """Path of its mask below the results folder."""
        return f"{contracts.PREDICTED_MASKS_FOLDER}/{self.stem}_{self.number}.png"


@dataclass(frozen=True)
class PromptTable:
    """The objects to predict, in the order of the rows, and which rows share an image."""

    samples: Sequence[Sample]
    objects: Sequence[PromptedObject]
    class_names: Sequence[str]              # of each row
    rows_of: Mapping[str, Sequence[int]]    # image -> its rows, in the order of the table; it may have none
    files: Mapping[str, tuple[Path, str]]   # image -> its file, and the path of its outputs without suffix
    classes: Sequence[str] = ()             # that come first, whether they occur or not

    @property
    def categories(self) -> dict[str, int]:
        """Class name -> number, from 1, in the order of the table."""
        names = dict.fromkeys([*self.classes, *self.class_names])
        return {name: number for number, name in enumerate(names, start=1)}


def read_prompt_table(photos: PhotoFolder) -> PromptTable:
    """Read and check the table of prompts. Raises UserError."""
    samples, names = read_prompts(photos.prompts_csv, photos.images_dir)
    check_samples(samples, photos.prompts_csv, need_labels=False)
    rows_of: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        rows_of.setdefault(sample.image_text, []).append(row)
    return prompt_table(samples, names, rows_of, {sample.image_text: sample.image for sample in samples})


def prompt_table(samples: Sequence[Sample], names: Sequence[str], rows_of: Mapping[str, Sequence[int]],
                 images: Mapping[str, Path], classes: Sequence[str] = ()) -> PromptTable:
    """Of `samples` with their class `names`; `images`: the file of each image. All else as in `PromptTable`."""
    stems = output_stems(rows_of)
    files = {image: (images[image], stems[image]) for image in rows_of}
    categories = PromptTable(samples, [], names, rows_of, files, classes).categories
    object_of = {row: PromptedObject(image_id, categories[names[row]], number, stems[image])
                 for image_id, (image, rows) in enumerate(rows_of.items(), start=1)
                 for number, row in enumerate(rows, start=1)}
    objects = [object_of[row] for row in range(len(samples))]
    return PromptTable(samples, objects, names, rows_of, files, classes)


def read_prompts(table_path: str | Path, images_dir: str | Path) -> tuple[list[Sample], list[str]]:
    """Read a table of prompts: a Sample and a class name for each row; `image_text` is the path below `images_dir`.

    Raises UserError for a missing folder, cells that hold no valid prompt, and paths that lead out of the folder.
    """
    root = Path(images_dir)
    if not root.is_dir():
        raise UserError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; expected the folder of the "
                        "images that the prompts are for")
    table = read_table(table_path, ("image",), MADE_BY)
    if not {"points", contracts.BOX_COLUMN} & {*table.columns}:
        raise UserError(f"{table_path}: neither a column points nor box; found {', '.join(table.columns)}; make it "
                        f"with {MADE_BY}")
    samples, names = [], []
    for number, row in enumerate(table.to_dict("records"), start=2):
        where = f"{table_path} row {number}"
        if row.get("label", "").strip():
            raise UserError(f"{where}: has a label; expected none. A table with ground truth goes to --test_csv")
        image = _path_below(row["image"], root, f"{where}, column image")
        samples.append(Sample(root / image, None, *read_prompt(row, where), image, ""))
        names.append(clean_name(row.get(contracts.CLASS_NAME_COLUMN)) or UNNAMED)
    return samples, names


def _path_below(text: str, root: Path, where: str) -> str:
    """The path below `root`, with / (\\ counts as /). Raises UserError if it, or a link on it, leads out of `root`."""
    if not text.strip():
        raise UserError(f"{where}: empty; expected the path of an image below {root}")
    try:
        path = root / text.strip().replace("\\", "/")
        inside = path.resolve().is_relative_to(root.resolve())
        below = Path(os.path.relpath(path, root))
    except (ValueError, RuntimeError) as error:  # a NUL in it, a circle of links
        raise UserError(f"{where}: {text!r} is not a valid path") from error
    if not inside or ".." in below.parts:
        raise UserError(f"{where}: {text} lies outside {root}; expected a path below it")
    return below.as_posix()


def output_stems(images: Iterable[str]) -> dict[str, str]:
    """{path of an image: path of its outputs, no suffix}, all different even on file systems that ignore case.

    Folders called images are left out: YOLO tools replace the last of them by labels to find a label file.
    """
    stems, taken = {}, set()
    for image in images:
        path = PurePosixPath(image)
        folders = [part for part in path.parts[:-1] if part.casefold() != contracts.IMAGES_FOLDER]
        stem = str(PurePosixPath(*folders, path.stem))
        if stem.casefold() in taken:
            stem += path.suffix.replace(".", "_")
        while stem.casefold() in taken:
            stem += "_"
        taken.add(stem.casefold())
        stems[image] = stem
    return stems
