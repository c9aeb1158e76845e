"""Step 1, COCO: turn COCO instance annotations into class folders of crops and masks.

    python process_coco_dataset.py --coco_json annotations/instances.json --images_dir images
    python process_coco_dataset.py --coco_json train/_annotations.coco.json valid/_annotations.coco.json

reads   one or several COCO JSON files   polygons (all parts), RLE in both forms
        the photos, in --images_dir      one folder for all files or one for each; default: each file's own folder
writes  processed_dataset/Class_<id>_<name>/images/<photo>_<n>.png   each object, cropped with some context
        processed_dataset/Class_<id>_<name>/masks/<photo>_<n>.png    its mask, 0 or 255, same name and size
        processed_dataset/instances.csv           where each crop comes from
        processed_dataset/classes.json            folder -> class id and name
        processed_dataset/conversion_report.csv   every annotation that was skipped, with the reason
        processed_dataset/preview.jpg             some of the crops with their masks' outlines

The split (train, val, test) is taken from the name of the JSON file, the folders in file_name, or those of the photos.
Next: Create_csv.py.
"""

import argparse
import hashlib
import json
import os
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from time import perf_counter

from sam_lora import cli
from sam_lora.data import class_folders
from sam_lora.data.boxes import note_boxes
from sam_lora.data.class_folders import CropSettings
from sam_lora.data.conversion_report import PHOTO_MISSING, TWICE, ConversionReport
from sam_lora.data.links import LINK_OUT
from sam_lora.data.listed_photos import (
    Entry,
    PhotoError,
    PhotoFolder,
    find_photos,
    photo_frame,
    split_named,
    split_of_folders,
)
from sam_lora.data.names import class_folder_names, clean_name, merge_same_names, printable
from sam_lora.data.segmentation import (
    BOX_MARKS,
    AnnotationError,
    Outline,
    box_or_none,
    is_fraction,
    read_outline,
)
from sam_lora.data.sources import ObjectClass, SourceImage, SourceObject, note_others
from sam_lora.errors import UserError

CROWD_EXPORT = 0.9      # CVAT marks every mask drawn by brush or SAM as iscrowd: then the flag means nothing
NAME_KEYS = ("file_name", "coco_url", "path", "url", "flickr_url")   # of an image: the first there is names its photo
KEPT_KEYS = frozenset({"images", "annotations", "categories",
                       "id", "width", "height", *NAME_KEYS,                                     # of an image
                       "image_id", "category_id", "iscrowd", "bbox", "segmentation",            # of an annotation
                       "caption", "segments_info",                                              # of another kind
                       *BOX_MARKS,
                       "size", "counts",                                                        # of an RLE
                       "x", "y",                                                                # of a polygon's point
                       "name"})                                                                 # of a category
FRACTIONS_EXPORT = 0.9  # of a file's outlines, or boxes, within 0..1: then these are fractions

CROWD = "iscrowd (--crowd keep takes it)"
FRACTION_AMONG_PIXELS = "all coordinates within 0..1, while the file's others are pixels"
NO_IMAGE = "image_id that no image has"


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--coco_json", nargs="+", required=True, metavar="FILE", help="COCO instance annotations")
    data.add_argument("--images_dir", nargs="+", metavar="DIR",
                      help="folder of the photos: one for all JSON files, or one for each in the same order; "
                           "default: the folder each JSON file is in")
    data.add_argument("--crowd", choices=("auto", "keep", "skip"), default="auto",
                      help="annotations with iscrowd: auto skips them, unless nearly all masks are RLE with iscrowd, "
                           "as CVAT exports them")
    cli.add_conversion(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    start = perf_counter()
    count = len(args.coco_json)
    if args.images_dir and len(args.images_dir) not in (1, count):
        get_args_parser().error(f"--images_dir: {len(args.images_dir)} folders for {count} JSON files; give one for "
                                "all or one for each")
    folders = args.images_dir or [Path(path).parent for path in args.coco_json]
    folders = [Path(folder) for folder in (folders * count if len(folders) == 1 else folders)]
    report = ConversionReport("annotations", args.strict)
    with class_folders.staged_output(args.output_dir, args.overwrite, args.dry_run) as staging:
        files = [read_coco_json(Path(path), folder) for path, folder in zip(args.coco_json, folders)]
        keep_crowd = args.crowd == "keep" or (args.crowd == "auto" and crowd_means_nothing(files, report))
        images, classes = read_images(files, photo_folders(files, args, report.notes), keep_crowd,
                                      args.boxes == "rectangle", report)
        class_folders.write_class_folders(
            images, classes, staging,
            CropSettings(args.padding, args.min_size, args.no_crop, args.square, args.tile), args.num_workers, report)
    print(*report.lines(), sep="\n")
    print(f"{'dry run: nothing written' if args.dry_run else f'written to {args.output_dir}'}, "
          f"{perf_counter() - start:.1f} s")


# ---- JSON -------------------------------------------------------------------------------------------------

@dataclass
class CocoFile:
    """A COCO JSON file as far as it is sound. Ids are text: some tools write "12", some 12."""
    path: Path
    images_dir: Path
    split: str                # by its own name; "" where that says none
    categories: dict[str, str] = field(default_factory=dict)        # id -> name
    images: list[dict] = field(default_factory=list)
    annotations: list = field(default_factory=list)
    folder_split: str = ""    # by its folder's name or the photos', see `name_folder_splits`


def read_coco_json(path: Path, images_dir: Path) -> CocoFile:
    """Read one JSON file and check that it holds instance annotations. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a COCO JSON file")
    if not images_dir.is_dir():
        raise UserError(f"{images_dir}: {'is a file' if images_dir.exists() else 'no such folder'}; expected the "
                        f"folder of {path}'s photos; give --images_dir")
    try:
        with path.open("rb") as file:
            encoding = json.detect_encoding(file.read(4))  # UTF-8, -16 or -32, with a byte order mark or without
        with path.open(encoding=encoding) as file:
            data = json.load(file, object_hook=slim)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: broken JSON (not UTF-8: {error.reason} at byte {error.start}); save it as UTF-8"
                        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON ({error})") from error
    if isinstance(data, list):
        raise UserError(f"{path}: found a list, as COCO result files are; expected an annotation file with images, "
                        "annotations and categories")
    data = data if isinstance(data, dict) else {}
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(data.get(key), list)]
    if missing:
        raise UserError(f"{path}: no list of {', '.join(missing)}; expected COCO instance annotations, with lists of "
                        f"{', '.join(keys)}")
    annotations = [annotation for annotation in data["annotations"] if isinstance(annotation, dict)]
    for key, kind in (("caption", "captions"), ("segments_info", "panoptic segments")):
        if annotations and all(key in annotation and "segmentation" not in annotation for annotation in annotations):
            raise UserError(f"{path}: holds {kind}; expected COCO instance annotations, with segmentation")
    categories: dict[str, str] = {}
    for category in data["categories"]:
        if isinstance(category, dict) and (key := id_text(category.get("id"))):
            name = category.get("name")
            categories.setdefault(key, clean_name(name) or f"category_{key}")
    images = [image for image in data["images"] if isinstance(image, dict)]
    return CocoFile(path, images_dir, split_named(path.stem), categories, images, data["annotations"])


def slim(entry: dict) -> dict:
    """What is needed of a JSON object, its numbers packed: 8 bytes each instead of 32 or more.

    The decoder calls this for each object as soon as it is read, so the rest is never in memory all at once.
    """
    kept = {key: value for key, value in entry.items() if key in KEPT_KEYS}
    outline = kept.get("segmentation")
    if isinstance(outline, list):
        kept["segmentation"] = [_packed(part) for part in outline] if outline and isinstance(outline[0], list) \
            else _packed(outline)
    if "counts" in kept:
        kept["counts"] = _packed(kept["counts"])
    attributes = entry.get("attributes")
    if isinstance(attributes, dict):
        kept |= {mark: attributes[mark] for mark in BOX_MARKS if mark in attributes}
    return kept


def _packed(values: object) -> object:
    """A list of numbers as an array of doubles; anything else as it is."""
    if not isinstance(values, list) or not values or not {*map(type, values)} <= {int, float}:
        return values
    try:
        return array("d", values)
    except OverflowError:  # whole numbers beyond 1e308
        return values


def name_folder_splits(files: Sequence[CocoFile]) -> None:
    """Set each file's split by the name of its folder or its photos', or of the one above: train/images.

    Only names that tell the files apart count: a project called "test" says nothing of its data.
    """
    folders = [(file.path.resolve().parent, file.images_dir.resolve()) for file in files]
    folders = [(*places, *(place.parent for place in places)) for places in folders]
    for same_place in zip(*folders):
        splits = [split_named(folder.name) for folder in same_place]
        if len({*splits}) > 1:
            for file, split in zip(files, splits):
                file.folder_split = split
            return


def id_text(value: object) -> str:
    """An id as text, "12" for 12, 12.0 and "12"; "" for a value that cannot be an id."""
    if isinstance(value, str):
        return printable(value.strip())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def number_of(key: str) -> int | None:
    """The whole number that an id is, None for other text ("a1", "007", a hundred digits)."""
    return int(key) if re.fullmatch("0|-?[1-9][0-9]{0,17}", key) else None


def is_crowd(annotation: dict) -> bool:
    return annotation.get("iscrowd") in (1, "1")


def crowd_means_nothing(files: Sequence[CocoFile], report: ConversionReport) -> bool:
    """Are over 90 % of all masks RLE with iscrowd? CVAT writes every brush or SAM mask so."""
    masks = [annotation for file in files for annotation in file.annotations
             if isinstance(annotation, dict) and annotation.get("segmentation")]
    crowd = sum(is_crowd(annotation) and isinstance(annotation["segmentation"], dict) for annotation in masks)
    if crowd <= CROWD_EXPORT * len(masks):
        return False
    report.notes[f"{crowd} of {len(masks)} masks are RLE with iscrowd, as CVAT writes any mask: kept"] += 1
    return True


# ---- categories -------------------------------------------------------------------------------------------

def object_classes(uses: Counter, report: ConversionReport) -> dict[str, ObjectClass]:
    """{class name: class} from {(class name, category id): count of objects}.

    Categories of one name are one class, with the lowest id that has objects. Where two names claim one id (in
    different files), the later one gets a free id.
    """
    ids = defaultdict(set)
    for name, category_id in uses:
        ids[name].add(category_id)
    wanted = {name: min(keys, key=_id_order) for name, keys in ids.items()}
    taken = set(wanted.values())
    free = max((number for key in taken if (number := number_of(key)) is not None), default=0) + 1
    classes, given = {}, set()
    for name, key in sorted(wanted.items(), key=lambda item: (_id_order(item[1]), item[0])):
        if key in given:
            report.notes[f"category id {key} has several names; {name!r} became id {free}"] += 1
            key, free = str(free), free + 1
        given.add(key)
        number = number_of(key)
        classes[name] = key if number is None else number
    folders = class_folder_names({name: f"{key}_{name}" for name, key in classes.items()})
    return {name: ObjectClass(key, name, folders[name]) for name, key in classes.items()}


def _id_order(key: str) -> tuple:
    number = number_of(key)
    return (1, 0, key) if number is None else (0, number, "")


def note_shared_names(files: Sequence[CocoFile], report: ConversionReport) -> None:
    """One note for each name that two categories of a file share."""
    for file in files:
        for name, keys in merge_same_names(file.categories).items():
            if len(keys) > 1:
                report.notes[f"{file.path}: categories {', '.join(keys)} are all named {name!r}: one class"] += 1


# ---- photos -----------------------------------------------------------------------------------------------

@dataclass
class Photo:
    """A photo while its annotations are gathered; otherwise as `SourceImage`."""
    path: Path
    name: str
    split: str
    size_wh: tuple[int, int]
    frame_wh: tuple[float, float] | None
    upright: bool
    label_file: str
    objects: list[SourceObject] = field(default_factory=list)
    annotations: int = 0     # of this photo, the skipped ones too
    outlines: set[bytes] = field(default_factory=set)        # digests of the objects' classes and outlines


PhotoOrError = Photo | PhotoError  # the reason why there is none


def photo_folders(files: Sequence[CocoFile], args: argparse.Namespace, notes: Counter) -> dict[Path, PhotoFolder]:
    """{resolved: the folder} of the files' photos. Links may lead to it, and to a JSON's folder that it lies in."""
    folders = {}
    for file in files:
        above = file.path.absolute().parent
        data_set = above if file.images_dir.absolute().is_relative_to(above) else None
        if file.images_dir.resolve() not in folders:
            folders[file.images_dir.resolve()] = PhotoFolder(file.images_dir, Path(args.output_dir), notes,
                                                             args.follow_links, data_set)
    return folders


def read_images(files: Sequence[CocoFile], folders: dict[Path, PhotoFolder], keep_crowd: bool, boxes: bool,
                report: ConversionReport) -> tuple[list[SourceImage], dict[str, ObjectClass]]:
    """(every photo found, with its objects; classes by name). Raises UserError where most photos are missing."""
    note_shared_names(files, report)
    listing = Listing(folders, report.notes)
    photos_of_files = listing.read(files)
    uses: Counter = Counter()
    for file, photo_of_id in zip(files, photos_of_files):
        _add_annotations(file, photo_of_id, keep_crowd, boxes, uses, report)
    photos = listing.photos.values()
    reasons = [error.reason for photo_of_id in photos_of_files for error in photo_of_id.values()
               if isinstance(error, PhotoError)]
    missing = sum(reason == PHOTO_MISSING for reason in reasons)
    listed = {photo.path.resolve() for photo in photos}
    on_disk = {(folder.folder / path).resolve() for folder in folders.values() for path in folder.files
               if path not in folder.links.refused and path not in folder.others}
    for folder in folders.values():
        note_others(folder.folder, (path for path in folder.others if path not in listing.named), report.notes)
    with_objects = sum(bool(photo.objects) for photo in photos)
    background = sum(photo.annotations == 0 for photo in photos)
    report.photos = {"with objects": with_objects,
                     "with skipped annotations only": len(photos) - with_objects - background,
                     "background": background, "missing": missing, "unusable": len(reasons) - missing,
                     "on disk but not used": len(on_disk - listed)}
    note_boxes((item for photo in photos for item in photo.objects), report.notes)
    images = [SourceImage(photo.path, photo.name, photo.split, photo.objects, photo.label_file, photo.frame_wh,
                          photo.upright, complete=photo.annotations == len(photo.objects)) for photo in photos]
    return images, object_classes(uses, report)


class Listing:
    """The photos that the files list, each once for every split it is in."""

    def __init__(self, folders: dict[Path, PhotoFolder], notes: Counter):
        self.folders, self.notes = folders, notes
        self.root = Path(os.path.commonpath([str(key) for key in folders]))
        self.photos: dict[tuple[Path, str], Photo] = {}
        self.ids: dict[Path, dict[Path, list[str]]] = defaultdict(lambda: defaultdict(list))  # photo -> file -> ids
        self.named: set[PurePosixPath] = set()    # by entries
        self.names_tell = False  # are the files named for different splits?

    def read(self, files: Sequence[CocoFile]) -> list[dict[str, PhotoOrError]]:
        """{image id: photo, or why there is none} of each file. Raises UserError where most photos are missing."""
        names = [_photo_names(file) for file in files]
        self.names_tell = len({file.split for file in files}) > 1
        name_folder_splits(files)
        splits = [file.split or file.folder_split for file in files]
        assumed = "train" if {"val", "test"} & {*splits} and "train" not in splits else ""
        entries = [Entry(name, self.folders[file.images_dir.resolve()], str(file.path), split or assumed)
                   for file, split, name_of_id in zip(files, splits, names)
                   for name in name_of_id.values() if isinstance(name, str)]
        found = iter(zip(entries, find_photos(entries, self.notes)))
        photos_of_files = []
        for file, name_of_id in zip(files, names):
            size_of_id = {id_text(image.get("id")): (image.get("width"), image.get("height"))
                          for image in reversed(file.images)}
            photos_of_files.append({key: name if isinstance(name, PhotoError)
                                    else self._photo(file, key, *next(found), size_of_id[key])
                                    for key, name in name_of_id.items()})
            links = self.folders[file.images_dir.resolve()].links
            _refuse_wrong_folder(file, name_of_id, photos_of_files[-1], links.refusal() if links.refused else "")
        self._name_rest_train()
        self._note_shared_photos()
        return photos_of_files

    def _photo(self, file: CocoFile, key: str, entry: Entry, path: PurePosixPath | PhotoError, size: tuple
               ) -> PhotoOrError:
        if isinstance(path, PhotoError):
            return path
        self.named.add(path)
        full = entry.folder.folder / path
        split = self._split(file, entry.name, path)
        try:
            size_wh, frame_wh, upright = photo_frame(full, *size, self.notes)
        except PhotoError as error:
            return PhotoError(error.reason, f"{path}: {error.detail}" if error.detail else str(path))
        name = (entry.folder.root / path).relative_to(self.root).as_posix()
        photo = self.photos.setdefault((full.resolve(), split),
                                       Photo(full, name, split, size_wh, frame_wh, upright, str(file.path)))
        if (photo.frame_wh, photo.upright) != (frame_wh, upright):
            return PhotoError("photo listed twice with different sizes", str(path))
        self.ids[photo.path][file.path].append(key)
        return photo

    def _split(self, file: CocoFile, name: str, path: PurePosixPath) -> str:
        """A photo's split by the folders in its file_name, else by those it lies in, else by its file's name or folder.

        Where the files are named for different splits, that goes first: LVIS's validation photos lie in train2017.
        """
        named = split_of_folders(PurePosixPath(name.replace("\\", "/")).parts[:-1])
        lies_in = split_of_folders(path.parts[:-1])
        if self.names_tell and file.split:
            if {named, lies_in} - {"", file.split}:
                self.notes[f"{file.path}: a photo in a folder of another split than this file's name has; it is "
                           f"{file.split}"] += 1
            return file.split
        return named or lies_in or file.split or file.folder_split

    def _name_rest_train(self) -> None:
        """Where the data set names val or test but no train, what it does not name is train."""
        splits = {photo.split for photo in self.photos.values()}
        if "" not in splits or "train" in splits or len(splits) == 1:
            return
        rest = [photo for photo in self.photos.values() if not photo.split]
        for photo in rest:
            photo.split = "train"
        others = " and ".join(sorted(splits - {""}))
        self.notes[f"{_photos(rest)} without a named split beside others of {others}: taken as train"] += 1

    def _note_shared_photos(self) -> None:
        """One note on photos under several image ids of a file, one on photos in several files."""
        several = [(path, ids) for path, files in self.ids.items() for ids in files.values() if len(ids) > 1]
        if several:
            path, ids = several[0]
            self.notes[f"{_photos(several)} under several image ids, e.g. {path.name} ({', '.join(ids[:5])}): taken as "
                       "one photo with all their annotations"] += 1
        shared = [(path, files) for path, files in self.ids.items() if len(files) > 1]
        if shared:
            path, files = shared[0]
            names = ", ".join(str(file) for file in [*files][:3])
            self.notes[f"{_photos(shared)} in several JSON files, e.g. {path.name} in {names}; if these are different "
                       "pictures of one name, give one --images_dir for each JSON file"] += 1


def _photos(counted: Sequence) -> str:
    return "1 photo" if len(counted) == 1 else f"{len(counted)} photos"


def _photo_names(file: CocoFile) -> dict[str, str | PhotoError]:
    """{image id: name of its photo, or why it has none}."""
    names: dict[str, str | PhotoError] = {}
    for image in file.images:
        key = id_text(image.get("id"))
        name = next((image[place] for place in NAME_KEYS
                     if isinstance(image.get(place), str) and image[place].strip()), None)
        name = name or PhotoError(PHOTO_MISSING, f"image {key} has no file_name", nowhere=True)
        if str(names.setdefault(key, name)) != str(name):  # which of the two is meant, nobody can tell
            names[key] = PhotoError("image id of two different photos")
    return names


def _refuse_wrong_folder(file: CocoFile, names: dict[str, str | PhotoError], photo_of_id: dict[str, PhotoOrError],
                         links: str) -> None:
    """Raise UserError if most of a file's photos are nowhere in its folder; `links`: which were not followed."""
    linked = sum(isinstance(error, PhotoError) and error.reason == LINK_OUT for error in photo_of_id.values())
    if linked * 2 > len(names):
        raise UserError(f"{file.path}: {linked} of {len(names)} photos are not followed. {links}")
    lost = [error for error in photo_of_id.values() if isinstance(error, PhotoError) and error.nowhere]
    if len(lost) * 2 > len(names):
        raise UserError(f"{file.path}: {len(lost)} of {len(names)} photos are not in {file.images_dir}, e.g. "
                        f"{lost[0].detail}; {links or 'give their folder with --images_dir'}")


# ---- annotations ------------------------------------------------------------------------------------------

@dataclass(slots=True)
class ReadAnnotation:
    """An annotation with all that makes it an object."""
    source_id: str
    photo: Photo
    index: int          # among its photo's annotations
    category: str
    outline: Outline
    bbox: object
    reason: str = ""    # why it is no object after all


def _add_annotations(file: CocoFile, photo_of_id: dict[str, PhotoOrError], keep_crowd: bool, boxes: bool,
                     uses: Counter, report: ConversionReport) -> None:
    """Give each photo the objects of one file, and count the class and category of each in `uses`."""
    read = []
    for position, annotation in enumerate(file.annotations):
        report.take()
        source_id = f"annotation at place {position}"
        try:
            if not isinstance(annotation, dict):
                raise AnnotationError("not an annotation")
            source_id = f"annotation {id_text(annotation.get('id'))}" if id_text(annotation.get("id")) else source_id
            read.append(_read_annotation(annotation, source_id, file, photo_of_id, keep_crowd, boxes, report.notes))
        except AnnotationError as error:
            report.skip(str(file.path), source_id, error.reason, error.detail)
    scale_fractions(read, report.notes)
    for item in read:
        name, outline = file.categories[item.category], item.outline
        if reason := item.reason or (TWICE if _is_copy(item.photo, name, outline) else ""):
            report.skip(str(file.path), item.source_id, reason)
            continue
        uses[name, item.category] += 1
        item.photo.objects.append(SourceObject(item.index, item.source_id, name, outline.polygons, outline.rle,
                                               outline.is_box, box_or_none(item.bbox)))


def _read_annotation(annotation: dict, source_id: str, file: CocoFile, photo_of_id: dict[str, PhotoOrError],
                     keep_crowd: bool, boxes: bool, notes: Counter) -> ReadAnnotation:
    """Raises AnnotationError."""
    photo = photo_of_id.get(id_text(annotation.get("image_id")) or None) or PhotoError(NO_IMAGE)
    if isinstance(photo, PhotoError):
        raise AnnotationError(photo.reason, photo.detail)
    photo.annotations += 1
    category = id_text(annotation.get("category_id"))
    if category not in file.categories:
        raise AnnotationError("category_id that no category has")
    if is_crowd(annotation) and not keep_crowd:
        raise AnnotationError(CROWD)
    outline = read_outline(annotation, photo.frame_wh, boxes, notes)
    return ReadAnnotation(source_id, photo, photo.annotations, category, outline, annotation.get("bbox"))


def scale_fractions(read: Sequence[ReadAnnotation], notes: Counter) -> None:
    """Where a file's coordinates are fractions of width and height, make them pixels of the frame.

    Polygons and boxes by themselves: of either, nearly all must lie within 0..1. Where only some do, they get a reason.
    """
    for boxes in (False, True):
        items = [item for item in read if item.outline.polygons and item.outline.is_box == boxes]
        fractions = [item for item in items if is_fraction(item.outline.polygons)]
        if not fractions:
            continue
        if len(fractions) < FRACTIONS_EXPORT * len(items):
            for item in fractions:
                if max(map(max, item.outline.polygons)) <= 1:
                    item.reason = FRACTION_AMONG_PIXELS
            continue
        for item in fractions:
            width, height = item.photo.frame_wh or item.photo.size_wh
            item.outline.polygons = [[number * (height if place % 2 else width) for place, number in enumerate(polygon)]
                                     for polygon in item.outline.polygons]
        notes[f"{len(fractions)} {'boxes' if boxes else 'outlines'} have all coordinates within 0..1: taken for "
              "fractions of width and height"] += 1


def _is_copy(photo: Photo, class_name: str, outline: Outline) -> bool:
    """Does the photo have that outline already, of the same class?"""
    digest = hashlib.blake2b(f"{outline.is_box} {class_name}".encode(), digest_size=16)
    for numbers in outline.polygons:
        digest.update((numbers if isinstance(numbers, array) else array("d", numbers)).tobytes() + b"|")
    if outline.rle is not None:
        size, counts = outline.rle.get("size"), outline.rle.get("counts")
        digest.update(counts.tobytes() if isinstance(counts, array) else str(counts).encode(errors="replace"))
        digest.update(str(size).encode(errors="replace"))
    known = digest.digest() in photo.outlines
    photo.outlines.add(digest.digest())
    return known


if __name__ == "__main__":
    cli.run(main, get_args_parser())
