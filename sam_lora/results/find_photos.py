"""Photos without ground truth and without prompts: every object found, in the forms that annotation tools read."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.data.samples import Sample
from sam_lora.errors import UserError
from sam_lora.files import atomic_path, refuse_existing, refuse_replacing
from sam_lora.model import processes
from sam_lora.model.finder import finder_of
from sam_lora.model.precision import autocast, choose_precision
from sam_lora.results import pictures
from sam_lora.results.annotation_files import annotated_mask, write_coco, write_yolo
from sam_lora.results.found import FoundObject, ScannedPhoto, decode_mask
from sam_lora.results.prompt_table import PromptTable, prompt_table
from sam_lora.results.requests import Candidate, Destination, FindPhotos, Runtime
from sam_lora.results.sample_pictures import choose_pictures
from sam_lora.results.scan import Search, scan_files, search_of, threshold_of
from sam_lora.workers import map_in_threads

ENTRIES = contracts.results_entries()


@dataclass(frozen=True)
class Finder:
    """A model that is ready to search: how, and the classes it knows."""

    search: Search
    classes: Sequence[str]


def ready(candidate: Candidate, request: FindPhotos, runtime: Runtime) -> Finder:
    """Load the model. Raises UserError for one that cannot find objects, and for classes that it does not know."""
    sam = candidate.load(set())
    precision = choose_precision(runtime.precision, runtime.device, sam, runtime.ranks)
    search = search_of(candidate, sam, request.wanted, threshold_of(sam, request.wanted),
                       autocast(precision, runtime.device))
    finder = finder_of(sam)
    return Finder(search, finder.class_names if finder else ())


# ---- one photo ----------------------------------------------------------------------------------------------

def find_in_photo(candidate: Candidate, request: FindPhotos, destination: Destination,
                  runtime: Runtime) -> list[FoundObject]:
    """Find all objects of one photo; write a mask for each and one overlay picture. Raises UserError."""
    path, folder = Path(request.image), destination.folder
    imaging.image_size(path)
    overlay_path = folder / contracts.single_overlay(path.stem)
    earlier = sorted(folder.glob(contracts.single_mask(_escaped(path.stem), "*"))) if folder.is_dir() else []
    refuse_existing([*earlier, overlay_path], destination.overwrite)
    (photo,) = scan_files([(path, request.image)], ready(candidate, request, runtime).search)
    mask_paths = [folder / contracts.single_mask(path.stem, number) for number in range(1, len(photo.found) + 1)]
    picture = marked(photo)
    with contextlib.ExitStack() as stack:  # all in place, or none
        for mask_path, thing in zip(mask_paths, photo.found):
            stack.enter_context(atomic_path(mask_path)).write_bytes(imaging.encode_png(decode_mask(thing.mask)))
        imaging.write_jpeg(overlay_path, picture)
    for old in {*earlier} - {*mask_paths}:
        old.unlink(missing_ok=True)
    for mask_path, thing in zip(mask_paths, photo.found):
        print(f"{mask_path}: {thing.class_name}, score {thing.score:.2f}, box {','.join(map(str, thing.box))}")
    print(f"{overlay_path}: {len(photo.found)} objects")
    return list(photo.found)


def _escaped(stem: str) -> str:
    """For a glob pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in stem)


def marked(photo: ScannedPhoto) -> np.ndarray:
    """The photo with everything that was found, each class in its colour."""
    names = sorted({thing.class_name for thing in photo.found})
    colours = {name: pictures.OBJECT_COLOURS[number % len(pictures.OBJECT_COLOURS)]
               for number, name in enumerate(names)}
    marks = [(decode_mask(thing.mask), colours[thing.class_name], f"{thing.class_name} {thing.score:.2f}")
             for thing in reversed(photo.found)]
    return pictures.marked_photo(imaging.load_image(photo.image), marks)


# ---- a folder of photos --------------------------------------------------------------------------------------

def find_in_folder(candidate: Candidate, request: FindPhotos, destination: Destination,
                   runtime: Runtime) -> dict | None:
    """Find all objects in the photos below a folder; returns what predictions.json holds.

    Writes masks/<photo>_<n>.png, overlays/<photo>.jpg of some photos, predictions.json (COCO, RLE) and, with
    `save_yolo`, the data set yolo/. Several processes share the photos; all but the first write nothing, and return
    None. Raises UserError.
    """
    ranks, root = runtime.ranks, Path(request.images_dir)
    with processes.one_first(ranks):
        paths = photos_below(root)
    if root.resolve() == destination.folder.resolve():
        raise UserError(f"{destination.folder}: holds the images of --images_dir; give another --output_dir")
    refuse_replacing(sorted({path.parent for path, _ in paths}), destination.folder, ENTRIES)
    with processes.shared_folder(ranks, destination.folder, ENTRIES, destination.overwrite) as folder:
        finder = ready(candidate, request, runtime)
        photos = scan_files(paths, finder.search, ranks)
        if not ranks.first:
            return None
        table = table_of(photos, finder.classes)
        found = [thing for photo in photos for thing in photo.found]
        annotated = []
        for item, thing in zip(table.objects, found, strict=True):
            mask, path = decode_mask(thing.mask), folder / item.mask_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(imaging.encode_png(mask))
            annotated.append(annotated_mask(mask, thing.score, item, request.save_yolo))
        content = write_coco(table, annotated, folder, [photo.size_wh for photo in photos])
        drawn = draw_overlays(photos, table, destination, folder)
        if request.save_yolo:
            write_yolo(table, annotated, folder / contracts.YOLO_FOLDER)
    print(f"{len(found)} objects found in {len(photos)} photos, {drawn} of them drawn; "
          f"{np.mean([photo.seconds for photo in photos]):.2f} s a photo")
    for name in table.categories:
        print(f"  {name}: {table.class_names.count(name)}")
    print(f"results: {destination.folder}")
    return content


def photos_below(root: Path) -> list[tuple[Path, str]]:
    """(path, path below `root`) of every image file but links that lead out of it. UserError where there is none."""
    if not root.is_dir():
        raise UserError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; expected a folder of photos")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in imaging.IMAGE_SUFFIXES
                   and path.is_file())
    paths = [path for path in files if path.resolve().is_relative_to(root.resolve())]
    if len(paths) < len(files):
        print(f"{root}: {len(files) - len(paths)} photos are links that lead out of it, and are left out")
    if not paths:
        raise UserError(f"{root}: no image in it; expected files that end in {', '.join(imaging.IMAGE_SUFFIXES)}")
    return [(path, path.relative_to(root).as_posix()) for path in paths]


def table_of(photos: Sequence[ScannedPhoto], classes: Sequence[str]) -> PromptTable:
    """What was found as rows, a box each, in the order of the photos."""
    samples, names, rows_of = [], [], {}
    for photo in photos:
        rows_of[photo.name] = range(len(samples), len(samples) + len(photo.found))
        samples += [Sample(photo.image, None, (), (), thing.box, photo.name, "") for thing in photo.found]
        names += [thing.class_name for thing in photo.found]
    return prompt_table(samples, names, rows_of, {photo.name: photo.image for photo in photos}, classes)


def draw_overlays(photos: Sequence[ScannedPhoto], table: PromptTable, destination: Destination, folder: Path) -> int:
    """Draw up to `num_pictures` photos with all that was found in them; returns how many."""
    first_classes = [photo.found[0].class_name if photo.found else "" for photo in photos]
    chosen = choose_pictures(first_classes, destination.num_pictures, destination.seed)

    def draw(photo: ScannedPhoto) -> None:
        imaging.write_jpeg(folder / contracts.OVERLAYS_FOLDER / f"{table.files[photo.name][1]}.jpg", marked(photo))
    drawn = map_in_threads(draw, [photos[place] for place in chosen])
    for _ in tqdm(drawn, "drawing", len(chosen), unit="picture", disable=None):
        pass
    return len(chosen)
