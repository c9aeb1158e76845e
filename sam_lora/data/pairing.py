"""Class folders -> pairs: images paired with their masks, each with its class, photo and split.

The folders are the truth. The manifest, where there is one, says what belongs together and which photo, class and
split a pair comes from; pairs deleted by hand are gone, and files it does not know are paired by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sam_lora import contracts
from sam_lora.data.imaging import IMAGE_SUFFIXES
from sam_lora.data.links import Links
from sam_lora.data.manifest import Manifest, ManifestRow, read_manifest
from sam_lora.data.names import photo_stem, printable
from sam_lora.errors import UserError
from sam_lora.tables import read_table

CONVERTERS = contracts.MADE_BY["class folders"]
NEEDED_COLUMNS = ("image_path", "mask_path", "class_id", "class_name", "source_image", "source_split")
LINK_NOT_FOLLOWED = "a link that leads out of the data set's folder (--follow_links takes it)"
SHOWN = 5                                     # entries named in an error

ClassOfFolder = Callable[[str], tuple[str | None, str]]


class Pair(NamedTuple):
    """One object: an image, its mask, and where they come from. Paths as written from the current folder, with /."""
    image_path: str
    mask_path: str
    class_id: str
    class_name: str
    source_image: str
    source_split: str      # train, val, test, or "" where the data set does not say
    source_digest: str = ""    # of the photo's file; "" where the manifest does not say


class Skipped(NamedTuple):
    path: str
    reason: str


class ClassFolders(NamedTuple):
    pairs: list[Pair]
    class_names: list[str]   # of every class known, with or without a pair
    skipped: list[Skipped]
    notes: list[str]
    background: Sequence[Pair] = ()   # photos or tiles without objects: no mask, no class


class _Files(NamedTuple):
    """Names of the image files of one class folder, sorted."""
    images: list[str]
    masks: list[str]


def read_class_folders(dataset_dir: str | Path, class_of_folder: ClassOfFolder, follow_links: bool = True
                       ) -> ClassFolders:
    """Pair the images and masks of every class folder, sorted by path.

    `class_of_folder`: what follows `Class_` in a folder's name -> (class id, class name), used where the manifest does
    not know the folder; an id of None becomes the folder's position in sort order. `follow_links` off: links that lead
    out of `dataset_dir` are skipped, if they are files, else refused. Raises UserError.
    """
    root = Path(dataset_dir)
    links = Links.below(root, follow_links)
    folders = _class_folders(links)
    manifest = read_manifest(root, NEEDED_COLUMNS)
    classes = _classes(folders, manifest, class_of_folder)
    skipped: list[Skipped] = []
    files = {folder.name: _Files(_list(folder / contracts.IMAGES_FOLDER, links, skipped),
                                 _list(folder / contracts.MASKS_FOLDER, links, skipped)) for folder in folders}
    images = {_image_path(name, image) for name, listed in files.items() for image in listed.images}
    pairs, used = [], set()
    for mask_path, image_path, row in _candidates(files, manifest):
        if image_path not in images:
            skipped.append(Skipped((root / mask_path).as_posix(), "mask without its image"))
            continue
        used.add(image_path)
        class_id, class_name = (row.class_id, row.class_name) if row else classes[mask_path.split("/")[0]]
        pairs.append(Pair((root / image_path).as_posix(), (root / mask_path).as_posix(), class_id, class_name,
                          *_photo_of(image_path, mask_path, row, manifest)))
    skipped += [Skipped((root / path).as_posix(), "image without a mask") for path in images - used]
    class_names = sorted({name for _, name in classes.values()} | {row.class_name for row in manifest.rows})
    notes = [links.refusal()] if links.refused else []
    if not manifest.rows:
        notes.append(f"no {root / contracts.MANIFEST_FILE}: classes go by folder name and photos by file name, where "
                     f"<photo>_0003 is an object of <photo>: {len({pair.source_image for pair in pairs})} photos")
    return ClassFolders(sorted(pairs), class_names, sorted(skipped), notes, sorted(_background(root)))


def _background(root: Path) -> list[Pair]:
    """The photos or tiles without objects that the converter kept, as far as they are still there."""
    path = root / contracts.BACKGROUND_FILE
    if not path.is_file():
        return []
    rows = read_table(path, ("image_path", "source_image", "source_split"), CONVERTERS).to_dict("records")
    rows = [ManifestRow.from_cells(row) for row in rows if is_within(root, row["image_path"])]
    return [Pair((root / row.image_path).as_posix(), "", "", "", row.source_image, row.source_split, row.source_digest)
            for row in rows if row.source_split in ("", *contracts.SPLITS)]


def is_within(root: Path, text: str) -> bool:
    """Is there a file of that path below `root`, also once links are followed?"""
    try:
        path = (root / text).resolve()
        return path.is_relative_to(root.resolve()) and path.is_file()
    except (OSError, ValueError):
        return False


def _class_folders(links: Links) -> list[Path]:
    """The class folders, sorted. Raises UserError where there are none, or one is a link that is not followed."""
    root = links.root
    if not root.is_dir():
        problem = "is a file, expected the folder of the class folders" if root.exists() else "no such folder"
        raise UserError(f"{root}: {problem}; make it with {CONVERTERS}")
    folders = sorted((entry for entry in root.iterdir()
                      if entry.name.startswith(contracts.CLASS_FOLDER_PREFIX) and links.takes_folder(entry)),
                     key=lambda folder: folder.name)
    if links.refused:
        raise UserError(links.refusal())
    if not folders:
        entries = sorted(entry.name for entry in root.iterdir())
        named = ", ".join(entries[:SHOWN]) + (" …" if len(entries) > SHOWN else "")
        raise UserError(f"{root}: no {contracts.CLASS_FOLDER_PREFIX}<name> folders; found {named or 'nothing'}; "
                        f"make them with {CONVERTERS}")
    return folders


def _classes(folders: Sequence[Path], manifest: Manifest, class_of_folder: ClassOfFolder) -> dict[str, tuple[str, str]]:
    """Class folder -> (class id, class name)."""
    classes = dict(manifest.class_of_folder)
    for position, folder in enumerate(folders):
        if folder.name not in classes:
            class_id, class_name = class_of_folder(printable(folder.name.removeprefix(contracts.CLASS_FOLDER_PREFIX)))
            classes[folder.name] = (str(position) if class_id is None else class_id, class_name)
    return classes


def _list(folder: Path, links: Links, skipped: list[Skipped]) -> list[str]:
    """Names of the image files in `folder`, sorted; a folder that is not there has none. Others go to `skipped`.

    Raises UserError for a folder that is a link that is not followed.
    """
    if not links.takes_folder(folder):
        if folder.is_dir():
            raise UserError(links.refusal())
        return []
    images = []
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")):
        if path.is_symlink() and not links.takes(path):
            skipped.append(Skipped(printable(path.as_posix()), LINK_NOT_FOLLOWED))
            continue
        text = path.as_posix()
        if printable(text) != text:
            skipped.append(Skipped(printable(text), "file name is not UTF-8, as a table must be"))
        elif path.suffix.lower() not in IMAGE_SUFFIXES:
            skipped.append(Skipped(text, "not an image file by its name"))
        else:
            images.append(path.name)
    return images


def _candidates(files: Mapping[str, _Files], manifest: Manifest) -> Iterator[tuple[str, str, ManifestRow | None]]:
    """(mask path, path that its image should have, its row of the manifest) of each mask."""
    for folder, (images, masks) in files.items():
        image_of_stem = {PurePosixPath(image).stem: image for image in reversed(images)}
        image_of_stem |= {image: image for image in images}  # the very same name goes first
        for mask in masks:
            mask_path = f"{folder}/{contracts.MASKS_FOLDER}/{mask}"
            row = manifest.of_mask(mask_path)
            yield mask_path, row.image_path if row else _image_path(folder, _image_for(mask, image_of_stem)), row


def _image_path(folder: str, image: str | None) -> str:
    return f"{folder}/{contracts.IMAGES_FOLDER}/{image}"


def _image_for(mask: str, images: Mapping[str, str]) -> str | None:
    """The image of that name, of that stem, or of the longest stem that `mask` starts with up to a _ - . or blank."""
    ends = [len(mask), *(index for index in range(len(mask) - 1, 0, -1) if mask[index] in "_-. ")]
    return next((images[mask[:end]] for end in ends if mask[:end] in images), None)


def _photo_of(image_path: str, mask_path: str, row: ManifestRow | None, manifest: Manifest) -> tuple[str, str, str]:
    """(photo, split, digest) from the pair's own row, else from another object's of that photo, else by name."""
    stem = photo_stem(image_path, mask_path)
    row = row or manifest.of_photo(stem)
    return (row.source_image, row.source_split, row.source_digest) if row else (stem, "", "")
