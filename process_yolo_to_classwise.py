"""Step 1, YOLO: turn a YOLO-polygon (segmentation) data set into class folders of crops and masks.

    python process_yolo_to_classwise.py --dataset_dir my_dataset

reads   my_dataset/data.yaml          class names; without it --class_names or classes.txt
        my_dataset/**/images/, labels/   in any usual layout: train/images, images/train, or images alone
writes  processed_dataset/Class_<name>/images/<photo>_<line>.png   each object, cropped with some context
        processed_dataset/Class_<name>/masks/<photo>_<line>.png    its mask, 0 or 255, same name and size
        processed_dataset/instances.csv           where each crop comes from
        processed_dataset/classes.json            folder -> class id and name
        processed_dataset/conversion_report.csv   every label row that was skipped, with the reason
        processed_dataset/preview.jpg             some of the crops with their masks' outlines

A label row is `class x1 y1 x2 y2 x3 y3 ...`, fractions of the photo's width and height; what tools add to it, see
README. Next: Create_yolo_csv.py.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from time import perf_counter

from sam_lora import cli
from sam_lora.data import class_folders
from sam_lora.data.boxes import note_boxes
from sam_lora.data.class_folders import CropSettings
from sam_lora.data.conversion_report import BOX_ONLY, PHOTO_MISSING, ConversionReport
from sam_lora.data.label_rows import OUT_OF_PHOTO, RowEnds, RowError, parse_label_row
from sam_lora.data.links import LINK_OUT, Links
from sam_lora.data.names import class_folder_names, clean_name, merge_same_names, normalise_split, printable
from sam_lora.data.sources import ObjectClass, SourceFiles, SourceImage, SourceObject, note_others, source_files
from sam_lora.data.text_files import read_lines, read_text
from sam_lora.errors import UserError

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES_TXT = "classes.txt"
TEXT_SUFFIXES = (".txt", ".yaml", ".yml")

CLIPPED = "a polygon reached beyond its photo and was clipped"


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_dir", required=True, metavar="DIR", help="the data set's folder")
    data.add_argument("--class_names", nargs="+", metavar="NAME",
                      help="class names in the order of their ids; default: data.yaml, then classes.txt")
    cli.add_conversion(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    start = perf_counter()
    root = Path(args.dataset_dir)
    if not root.is_dir():
        raise UserError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; expected the folder of a YOLO "
                        "data set, with images/ and labels/ in it")
    report, links = ConversionReport("label rows", args.strict), Links.below(root, args.follow_links)
    with class_folders.staged_output(args.output_dir, args.overwrite, args.dry_run) as staging:
        files = source_files(root, Path(args.output_dir), TEXT_SUFFIXES, links)
        refuse_lost_labels(links)
        links.note(report.notes)
        settings, yaml_path = read_data_yaml(root)
        names = class_names(root, args.class_names, settings, yaml_path, report)
        images = read_images(links, files, settings, names, args.boxes == "rectangle", report)
        class_folders.write_class_folders(
            images, object_classes(names, images, report), staging,
            CropSettings(args.padding, args.min_size, args.no_crop, args.square, args.tile), args.num_workers, report)
    print(*report.lines(), sep="\n")
    print(f"{'dry run: nothing written' if args.dry_run else f'written to {args.output_dir}'}, "
          f"{perf_counter() - start:.1f} s")


# ---- data.yaml and class names ----------------------------------------------------------------------------

def read_data_yaml(root: Path) -> tuple[dict, Path | None]:
    """data.yaml, or the only other .yaml there is: (content, path); ({}, None) without one. Raises UserError."""
    import yaml
    usual = [root / name for name in YAML_NAMES if (root / name).is_file()]
    others = sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml") and path.is_file())
    path = usual[0] if usual else others[0] if len(others) == 1 else None
    if path is None:
        return {}, None
    try:
        settings = _yaml_as_written(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError) as error:  # PyYAML
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f" at line {mark.line + 1}" if mark else ""
        why = f" ({printable(str(problem))[:100]})" if problem else ""
        raise UserError(f"{path}: broken YAML{where}{why}; expected `names:` and the class names") from error
    settings = {} if is_null(settings) else settings
    if not isinstance(settings, dict):
        raise UserError(f"{path}: found a {type(settings).__name__}, expected keys such as `names:`")
    if not is_null(settings.get("kpt_shape")):
        raise UserError(f"{path}: kpt_shape says that this is a pose data set; expected segmentation polygons")
    return settings, path


def _yaml_as_written(text: str) -> object:
    """YAML whose plain scalars stay text: `no`, `010` and `1e3` are names, not False, 8 and 1000.

    A Windows path in double quotes, whose backslashes YAML takes for escapes, counts as it is meant.
    """
    import yaml

    class TextLoader(yaml.SafeLoader):
        pass
    TextLoader.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # `<<` merges a mapping
    return yaml.load(re.sub(r'"[A-Za-z]:\\[^"\n]*"', lambda path: path[0].replace("\\", "/"), text), TextLoader)


def is_null(value: object) -> bool:
    """Is a value of data.yaml nothing, as it is written?"""
    return value is None or (isinstance(value, str) and value in ("", "~", "null", "Null", "NULL"))


def _count(value: object) -> int | None:
    """A count that data.yaml gives; None where it is no whole number."""
    try:
        return int(str(value), 0)
    except ValueError:
        return None


def class_names(root: Path, given: Sequence[str] | None, settings: dict, yaml_path: Path | None,
                report: ConversionReport) -> dict[int, str] | None:
    """{class id: name} from --class_names, data.yaml or classes.txt.

    None where data.yaml is there but names nothing and counts nothing: then any id is `class_<id>`. Raises UserError.
    """
    if given:
        return {i: clean_name(name) or f"class_{i}" for i, name in enumerate(given)}
    names, count = settings.get("names"), _count(settings.get("nc"))
    if not is_null(names):
        names = _names_from_yaml(names, yaml_path)
        if count is not None and count != len(names):
            count = count if abs(count) < 10**9 else "huge"
            report.notes[f"{yaml_path.name}: nc is {count}, but names has {len(names)}; the names were taken"] += 1
        return names
    for folder in (root, root / "labels", root / "train", root / "train" / "labels"):
        if (folder / CLASSES_TXT).is_file():
            names = [clean_name(line) for line in read_text(folder / CLASSES_TXT).splitlines()]
            while names and not names[-1]:
                names.pop()
            if not names:
                raise UserError(f"{folder / CLASSES_TXT}: empty; expected one class name a line, or give --class_names")
            return {i: name or f"class_{i}" for i, name in enumerate(names)}
    if yaml_path is None:
        raise UserError(f"{root}: no data.yaml and no {CLASSES_TXT}; give the names in the order of their ids with "
                        "--class_names NAME [NAME ...]")
    report.notes[f"{yaml_path.name}: no names; classes are called class_<id>"] += 1
    return {i: f"class_{i}" for i in range(count)} if count is not None and 0 < count < 10**5 else None


def _names_from_yaml(names: object, path: Path) -> dict[int, str]:
    if isinstance(names, list):
        pairs = list(enumerate(names))
    elif isinstance(names, dict):
        try:
            pairs = [(int(str(key)), name) for key, name in names.items()]
        except ValueError as error:
            raise UserError(f"{path}: names has the key {str(error).split(':')[-1].strip()}, expected class ids "
                            "0, 1, 2 ...") from error
    else:
        raise UserError(f"{path}: names is a {type(names).__name__}, expected a list, or a mapping from id to name")
    if not pairs:
        raise UserError(f"{path}: names is empty; give the names with --class_names")
    unnamed = [name for _, name in pairs if isinstance(name, list | dict)]
    if unnamed:
        raise UserError(f"{path}: names holds a {type(unnamed[0]).__name__}, expected plain names")
    return {i: clean_name(name) or f"class_{i}" for i, name in sorted(pairs, key=lambda pair: pair[0])}


def object_classes(names: dict[int, str] | None, images: Sequence[SourceImage], report: ConversionReport
                   ) -> dict[str, ObjectClass]:
    """{class id as text: class}, for the ids in use. Ids of one name are one class, that of the lowest such id."""
    used = sorted({int(item.class_key) for image in images for item in image.objects})
    name_of = {str(i): f"class_{i}" if names is None else names[i] for i in used}
    merged = merge_same_names(name_of)
    folders = class_folder_names({name: name for name in merged})
    classes = {}
    for name, keys in merged.items():
        if len(keys) > 1:
            report.notes[f"class ids {', '.join(keys)} are all named {name!r}: one class"] += 1
        classes |= {key: ObjectClass(int(keys[0]), name, folders[name]) for key in keys}
    return classes


# ---- folders ----------------------------------------------------------------------------------------------

def refuse_lost_labels(links: Links) -> None:
    """Raise UserError for links that lead out or nowhere and that may hold labels: their rows could not be counted."""
    def may_hold_labels(link: PurePosixPath) -> bool:
        if link.suffix.lower() in TEXT_SUFFIXES:
            return True
        return any(normalise_split(part) or part.lower() in ("images", "labels") for part in link.parts) \
            and (links.root / link).is_dir()
    if any(map(may_hold_labels, links.refused)):
        raise UserError(links.refusal())
    lost = sorted(filter(may_hold_labels, links.broken))
    if lost:
        raise UserError(f"{links.root}: labels or names are links that lead nowhere: {len(lost)}, e.g. {lost[0]}")


def read_images(links: Links, files: SourceFiles, settings: dict, names: dict[int, str] | None, boxes: bool,
                report: ConversionReport) -> list[SourceImage]:
    """Every photo among `files`, which are below `links.root`, with its label file's objects. Raises UserError."""
    root = links.root
    texts = {path for path in files.named if path.suffix.lower() == ".txt"}
    photos = [path for path in files.named if path.suffix.lower() not in TEXT_SUFFIXES]
    more = labelled(files.others, photos, texts)
    note_others(root, sorted({*files.others} - {*more}), report.notes)
    photos = sorted([*photos, *more])
    split_of = named_splits(settings, root, photos, texts, report.notes)
    kept = [path for path in photos if _last_index(path.parts, "images") is not None or _named(path, split_of)]
    ignored = len(photos) - len(kept) if kept else 0
    kept = kept or photos  # labels beside photos, as darknet has them
    if not kept and links.refused:
        raise UserError(links.refusal())
    if not kept:
        raise UserError(f"{root}: no photo found; expected images/ and labels/, train/images/ and train/labels/, or "
                        "images/train/ and labels/train/")
    labels = label_files(kept, texts)
    if links.followed:
        kept = once(kept, root, labels, texts, split_of, report.notes)
    used = sorted({*labels.values()} & texts)
    ends = RowEnds(lambda: (line for label in used for line in read_lines(root / label)))
    images, photo_of_label = [], {}
    background = 0
    for path in kept:
        label = labels[path]
        taken_before = report.total
        objects: list[SourceObject] = []
        if label in photo_of_label:
            report.notes[f"two photos share a label file; {photo_of_label[label]} has it, not {path}"] += 1
        elif label in texts:
            photo_of_label[label] = path
            objects = read_label_file(root / label, str(label), names, boxes, ends, report)
        empty = report.total == taken_before
        background += empty
        images.append(SourceImage(root / path, str(path), photo_split(path, split_of), objects, str(label), (1, 1),
                                  complete=len(objects) == report.total - taken_before))
    if not photo_of_label:
        example = labels[kept[0]]
        raise UserError(f"{root}: {len(kept)} photos, but not one label file; {root / example} is expected for "
                        f"{root / kept[0]}")
    left = texts - {*labels.values()}
    if links.followed:
        read = {(root / label).resolve() for label in used}
        left = {target: path for path in sorted(left, reverse=True)
                if (target := (root / path).resolve()) not in read}.values()
    missing = _skip_labels_without_photo(links, sorted(left), report)
    with_objects = sum(bool(image.objects) for image in images)
    report.photos = {"with objects": with_objects, "with skipped rows only": len(images) - with_objects - background,
                     "background": background, "missing": missing, "outside images/ ignored": ignored}
    note_boxes((item for image in images for item in image.objects), report.notes)
    return images


def once(photos: Sequence[PurePosixPath], root: Path, labels: Mapping[PurePosixPath, PurePosixPath],
         texts: set[PurePosixPath], split_of: dict[PurePosixPath, str], notes: Counter) -> list[PurePosixPath]:
    """`photos`, those that links show in several places only where they have labels of their own there.

    Of places with the same labels, or with none anywhere, one whose split has a name goes first, then one by a link.
    """
    def rank(path: PurePosixPath) -> tuple:
        return not photo_split(path, split_of), (root / path).resolve() == root.resolve() / path, path
    places = defaultdict(list)
    for path in photos:
        places[(root / path).resolve()].append(path)
    taken = set()
    for same in places.values():
        with_labels = [path for path in same if labels[path] in texts]
        same = sorted(with_labels or same, key=rank)
        taken |= {*{(root / labels[path]).resolve(): path for path in reversed(same)}.values()} if with_labels \
            else {same[0]}
    if len(taken) < len(photos):
        notes[f"{len(photos) - len(taken)} photos are also in other places, by links: taken once"] += 1
    return [path for path in photos if path in taken]


def _skip_labels_without_photo(links: Links, texts: Sequence[PurePosixPath], report: ConversionReport) -> int:
    """Skip every row of the label files among `texts`, which no photo has; returns the number of these files."""
    label_paths = [path for path in texts if _last_index(path.parts, "labels") is not None
                   and path.name.lower() != CLASSES_TXT]
    linked = {label_file(link) for link in links.refused}
    for path in label_paths:
        for number, line in enumerate(read_lines(links.root / path), start=1):
            if line.strip():
                report.take()
                report.skip(str(path), f"{path}:{number}", LINK_OUT if path in linked else PHOTO_MISSING)
    return len(label_paths)


def named_splits(settings: dict, root: Path, photos: Sequence[PurePosixPath], texts: set[PurePosixPath],
                 notes: Counter) -> dict[PurePosixPath, str]:
    """{folder or photo: train, val or test} as data.yaml has it: a folder, a .txt list of photos, or several.

    Its paths are often stale (another machine, Windows, ../): the longest end of one that is here counts, whatever the
    case. What two splits name belongs to neither; what is not here is noted.
    """
    known = {*photos, *texts, *(parent for path in photos for parent in path.parents)} - {PurePosixPath(".")}
    here = {str(path).casefold(): path for path in sorted(known)}
    named = defaultdict(set)
    for key, values in settings.items():
        split = normalise_split(key) if isinstance(key, str) else ""
        values = values if isinstance(values, list) else [values]
        for value in [value for value in values if split and isinstance(value, str) and not is_null(value.strip())]:
            path = _longest_end(value, here)
            if path is None:
                notes[f"data.yaml names a folder that is not here: {key}: {value[:200]}"] += 1
            listed = read_lines(root / path) if path in texts else []
            for place in [_longest_end(line.strip(), here) for line in listed] if path in texts else [path]:
                named[place].add(split)
    named.pop(None, None)
    return {path: splits.pop() for path, splits in named.items() if len(splits) == 1}


def _longest_end(path: str, here: Mapping[str, PurePosixPath]) -> PurePosixPath | None:
    parts = [part for part in path.casefold().replace("\\", "/").split("/") if part not in ("", ".", "..")][-50:]
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((here[end] for end in ends if end in here), None)


def photo_split(path: PurePosixPath, split_of: dict[PurePosixPath, str]) -> str:
    """The split a photo is in: the folder above or below images/ says it, else data.yaml, else it has none."""
    folders = path.parts[:-1]
    index = _last_index(folders, "images")
    around = folders if index is None else (*folders[index + 1:index + 2], *folders[max(index - 1, 0):index])
    for name in around:
        if split := normalise_split(name):
            return split
    named = _named(path, split_of)
    return split_of[named] if named else ""


def label_files(photos: Sequence[PurePosixPath], texts: set[PurePosixPath]) -> dict[PurePosixPath, PurePosixPath]:
    """{photo: where its labels are}; Labels/A.TXT serves images/a.jpg where nothing else does."""
    exact = {path: label_file(path) for path in photos}
    folded = {str(path).casefold(): path for path in sorted(texts.difference(exact.values()))}
    return {path: label if label in texts else folded.get(str(label).casefold(), label)
            for path, label in exact.items()}


def labelled(others: Sequence[PurePosixPath], photos: Sequence[PurePosixPath], texts: set[PurePosixPath]
             ) -> list[PurePosixPath]:
    """Files of other kinds (.heic, .raw) that have a label file which none of the `photos` has: one for each.

    Outside of images/, where anything may lie beside a text, only those that are photos by their suffix.
    """
    from sam_lora.data.imaging import HEIC_SUFFIXES
    others = [path for path in others if _last_index(path.parts[:-1], "images") is not None
              or path.suffix.lower() in HEIC_SUFFIXES]
    taken = {*label_files(photos, texts).values()}
    found = {}
    for path, label in label_files(others, texts).items():
        if label in texts and label not in taken:
            found.setdefault(label, path)
    return [*found.values()]


def label_file(photo: PurePosixPath) -> PurePosixPath:
    """Where a photo's labels are: the last images/ of its path becomes labels/; without one, beside it."""
    parts = list(photo.parts)
    index = _last_index(parts[:-1], "images")
    if index is not None:
        parts[index] = "labels"
    return PurePosixPath(*parts).with_name(f"{photo.stem}.txt")


def _last_index(parts: Sequence[str], name: str) -> int | None:
    return next((index for index in range(len(parts) - 1, -1, -1) if parts[index].lower() == name), None)


def _named(path: PurePosixPath, split_of: dict[PurePosixPath, str]) -> PurePosixPath | None:
    return next((place for place in (path, *path.parents) if place in split_of), None)


# ---- label rows -------------------------------------------------------------------------------------------

def read_label_file(path: Path, name: str, names: dict[int, str] | None, boxes: bool, ends: RowEnds,
                    report: ConversionReport) -> list[SourceObject]:
    """The objects of one label file; `name` is how report and manifest call it. One row, one object."""
    objects, seen = [], set()
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        report.take()
        source_id = f"{name}:{number}"
        try:
            row = parse_label_row(line, ends)
            if row.class_id < 0 or (names is not None and row.class_id not in names):
                raise RowError("class id that has no name")
            same = (row.class_id, row.is_box, row.polygon.tobytes())
            if same in seen:
                raise RowError("the same row twice")
            seen.add(same)
            if row.is_box and not boxes:
                raise RowError(BOX_ONLY)
        except RowError as error:
            report.skip(name, source_id, str(error), line.strip()[:60])
            continue
        if row.extra:
            report.notes[f"a row had more numbers than its outline, taken for {row.extra} and dropped"] += 1
        if not -OUT_OF_PHOTO <= min(row.polygon) <= max(row.polygon) <= 1 + OUT_OF_PHOTO:
            report.notes[CLIPPED] += 1
        objects.append(SourceObject(number, source_id, str(row.class_id), (row.polygon,), is_rectangle=row.is_box))
    return objects


if __name__ == "__main__":
    cli.run(main, get_args_parser())
