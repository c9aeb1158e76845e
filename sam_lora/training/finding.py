"""Training a finder: whether a run does, and its last steps alone, on the embeddings of the finished encoder."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.data.imaging import image_size
from sam_lora.data.manifest import class_names
from sam_lora.data.photos import count_whole, group_photos
from sam_lora.data.samples import Sample
from sam_lora.model.augment import jitter_colors
from sam_lora.model.batches import pad_images, read_image
from sam_lora.model.checkpoints import load_trained_state
from sam_lora.model.encode import preprocess
from sam_lora.model.finder import cell_side
from sam_lora.model.finder_targets import Cells, Scene, Scenes, stack_cells
from sam_lora.model.meta import ResizeLongestSide, Sam
from sam_lora.ranks import Ranks
from sam_lora.training.finder_loss import finder_loss
from sam_lora.training.precision import Precision
from sam_lora.training.run_state import Run
from sam_lora.training.update import GRADIENT_CLIP, LearningRate

STEPS = 600                 # that a finder is to have had in all; a small table's epochs have fewer
MIN_LAST_STEPS = 200        # alone: the encoder of the best epoch is not that of the last
IMAGES_PER_STEP = 16
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.01
EMBEDDINGS = 1000           # about how many there are: of few photos, many versions each
MOST_VERSIONS = 16
MEMORY_BYTES = 2 << 30      # of embeddings
COLOR_JITTER = 0.2
CLASS_DROPOUT = 0.4         # of the channels from which classes are told: those of few photos are soon known by heart


def plan_finder(rows: Sequence[Sample], wanted: bool | None, ranks: Ranks) -> dict | None:
    """The checkpoint header's entry about the finder, None without one; says which and why.

    `wanted` None: where all rows of the training table are known to show whole photos or tiles.
    """
    whole = count_whole(rows)
    if not (wanted or (wanted is None and whole == len(rows))):
        if wanted is None:
            ranks.say(f"finding objects without a prompt is not learned: {len(rows) - whole} of {len(rows)} rows are "
                      "not known to show whole photos or tiles (--no_crop or --tile make them; --find learns it all "
                      "the same)")
        return None
    classes = sorted({name for sample, name in zip(rows, class_names(rows)) if sample.label})
    ranks.say(f"finding objects without a prompt is learned too: {', '.join(classes)}")
    longest = [max(image_size(path)) for path in {sample.image for sample in rows}]
    return {"classes": classes, "photo_side": int(np.median(longest)), "threshold": None}


def complete_finder(sam: Sam, rows: Sequence[Sample], run: Run, steps: int, seed: int, precision: Precision,
                    validation: Callable[[], tuple[float, float]]) -> str:
    """The finder's last steps, after `steps` so far, from the best epoch's weights; its threshold; what to print.

    `validation` gives the threshold of the best F1, and that F1: NaN without a validation table.
    """
    load_trained_state(sam, run.best.state, run.folder)
    scenes = Scenes(rows, sam.finder.class_names, cell_side(sam))
    finish_finder(sam, rows, scenes, steps_left(steps), seed, precision.autocast)
    threshold, f1 = validation()
    run.complete_finder(sam, threshold)
    return (f"finding objects without a prompt: those with a score of {threshold:.2f} or more"
            + ("" if math.isnan(f1) else f", F1 {f1:.3f} on the validation photos"))


def steps_left(seen: int) -> int:
    """How many steps `finish_finder` has to add to those of a run."""
    return max(MIN_LAST_STEPS, STEPS - seen)


def finish_finder(sam: Sam, samples: Sequence[Sample], scenes: Scenes, steps: int, seed: int,
                  autocast: AbstractContextManager) -> None:
    """Train the finder alone for `steps`, on the embeddings of the photos of a table, of each in several versions.

    A step costs a hundredth of one that trains the encoder too, and a head that starts from nothing needs hundreds.
    """
    embeddings, cells = _embed(sam, samples, scenes, np.random.default_rng(seed), autocast)
    finder = sam.finder.train()
    finder.set_class_dropout(CLASS_DROPOUT)
    torch.manual_seed(seed)     # dropout draws from torch's global generator
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(finder.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    learning_rate = LearningRate(LEARNING_RATE, steps, warmup=0.1)
    for step in tqdm(range(steps), "finder", unit="step", leave=False, disable=None):
        chosen = torch.randint(len(embeddings), (IMAGES_PER_STEP,), generator=generator)
        some = stack_cells([cells[number] for number in chosen.tolist()]).to(sam.device)
        found = finder(embeddings[chosen].to(sam.device).float(), cell_side(sam))
        optimizer.param_groups[0]["lr"] = learning_rate.at(step)
        finder_loss(found, some).mean().backward()
        torch.nn.utils.clip_grad_norm_(finder.parameters(), GRADIENT_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    finder.set_class_dropout(0.0)
    finder.eval()


@torch.no_grad()
def _embed(sam: Sam, samples: Sequence[Sample], scenes: Scenes, generator: np.random.Generator,
           autocast: AbstractContextManager) -> tuple[Tensor, list[Cells]]:
    """Of photos in several versions: embeddings (M, C, h, w) on the CPU, and what is in them."""
    sam.eval()
    side, transform = sam.image_encoder.img_size, ResizeLongestSide(sam.image_encoder.img_size)
    photos = [samples[rows[0]] for rows in group_photos(samples).values()]
    kind = torch.float32 if sam.device.type == "cpu" else torch.float16
    height, width = sam.prompt_encoder.image_embedding_size
    room = MEMORY_BYTES // (sam.prompt_encoder.embed_dim * height * width * kind.itemsize)
    versions = max(1, min(EMBEDDINGS // len(photos), room // len(photos), MOST_VERSIONS))
    embeddings, cells = [], []
    for photo in tqdm(photos, "finder: embeddings", unit="photo", leave=False, disable=None):
        image, original_size = read_image(photo.image, transform)
        scene = scenes.of(photo, original_size, tuple(image.shape[1:]))
        for version in range(versions):
            turned, scene_turned = _version(image, scene, version, generator)
            size = torch.tensor([turned.shape[1:]], device=sam.device)
            with autocast:
                frame = preprocess(pad_images([turned], side).to(sam.device), size, sam)
                embeddings.append(sam.image_encoder(frame).to("cpu", kind))
            cells.append(scene_turned.cells(side))
    return torch.cat(embeddings), cells


def _version(image: Tensor, scene: Scene, number: int, generator: np.random.Generator) -> tuple[Tensor, Scene]:
    """Of (3, h, w) uint8 and its scene one of the eight mirrorings and quarter turns; all but the first time in other
    colours."""
    axes = [axis for bit, axis in ((1, -1), (2, -2)) if number & bit]
    image, scene = image.flip(axes), scene.mirrored(axes)
    if number & 4:
        image, scene = image.transpose(1, 2), replace(scene, owner=scene.owner.T)
    if number:
        image = jitter_colors(image, 1 + COLOR_JITTER * generator.uniform(-1, 1, 3))
    return image, scene
