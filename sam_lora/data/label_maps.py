"""Label maps (cellpose, micro-sam, QuPath, VOC) among a user's own masks: a mask for each object they number."""

from pathlib import Path

from tqdm import tqdm

from sam_lora import contracts
from sam_lora.data import imaging
from sam_lora.errors import UserError

LABEL_MAPS_FOLDER = "label_maps"    # beside masks/: where the label maps go


def split_label_maps(dataset_dir: str | Path) -> tuple[int, int]:
    """Turn every label map in the class folders' masks/ into masks `<name>_<value>.png`: (label maps, masks).

    The label map moves to label_maps/ beside masks/. What cannot be read is left for the step that reads it. Raises
    UserError where a mask or label map of that name is there already.
    """
    paths = sorted(path for folder in Path(dataset_dir).glob(f"{contracts.CLASS_FOLDER_PREFIX}*")
                   for path in (folder / contracts.MASKS_FOLDER).glob("*")
                   if path.suffix.lower() in imaging.IMAGE_SUFFIXES and path.is_file())
    maps = masks = 0
    for path in tqdm(paths, "label maps", unit="file", disable=None):
        try:
            objects = imaging.load_label_map(path)
        except imaging.ImageError:
            continue
        if objects:
            maps, masks = maps + 1, masks + len(objects)
            _split(path, objects)
    return maps, masks


def _split(path: Path, objects: dict) -> None:
    kept = path.parents[1] / LABEL_MAPS_FOLDER / path.name
    mask_of = {path.with_name(f"{path.stem}_{value:04d}.png"): mask for value, mask in objects.items()}
    for taken in [target for target in (kept, *mask_of) if target.exists()]:
        if taken == kept or (imaging.load_mask(taken) != mask_of[taken]).any():     # else of a run that was stopped
            raise UserError(f"{taken}: already there, expected none; {path} is a label map that is to become masks")
    for target, mask in mask_of.items():
        imaging.write_png(target, mask)
    kept.parent.mkdir(exist_ok=True)
    path.replace(kept)
