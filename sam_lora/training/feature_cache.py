"""Frozen work is done once: what enters the first encoder block that trains is kept for each image, in files.

With LoRA in the last blocks only, everything before them gives the same features in every epoch. The loader's workers
read them in place of the images; the operating system keeps in memory what fits. A file may go at any time: its image
is decoded and its features are computed anew. An entry, `<key>.safetensors`, holds one tensor, `features`, and in its
metadata `key`, `image_size` (height and width of the image file) and `crc32` (over both and the numbers).
"""

import hashlib
import shutil
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from sam_lora.errors import UserError
from sam_lora.files import atomic_path
from sam_lora.model.batches import Batch, pad_images, read_image
from sam_lora.model.encode import encode_frozen, preprocess
from sam_lora.model.meta import ResizeLongestSide, Sam
from sam_lora.model.weights import sha256_of
from sam_lora.training.distributed import Ranks, add_up
from sam_lora.training.precision import Precision
from sam_lora.workers import map_in_threads

FORMAT_VERSION = 2
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LEFT_FREE_BYTES = 1 << 30  # of the disk: a cache must not be what fills it
Kept = tuple[Tensor, tuple[int, int]]  # the features of an image, and the (H, W) of its file


class DamagedEntry(Exception):
    """A file of the cache that does not hold what was written."""


@dataclass(frozen=True)
class FeatureFiles:
    """The entries of a folder; goes to the loader's workers, who read. `keys`: the name of each image's entry."""

    folder: Path
    keys: dict[Path, str]

    def path(self, image: Path) -> Path:
        return self.folder / f"{self.keys[image]}.safetensors"

    def load(self, image: Path) -> Kept:
        """What is kept of an image. Raises DamagedEntry, and FileNotFoundError or another OSError."""
        try:
            with safe_open(self.path(image), framework="pt") as entry:
                features, metadata = entry.get_tensor("features"), entry.metadata()
            if metadata["crc32"] != checksum(features, self.keys[image], metadata["image_size"]):
                raise DamagedEntry(self.path(image))
            height, width = map(int, metadata["image_size"].split())
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DamagedEntry(self.path(image)) from error
        return features, (height, width)

    def __call__(self, image: Path) -> Kept | None:
        """As `load`; None if there is no whole entry, whatever the reason."""
        try:
            return self.load(image)
        except (DamagedEntry, OSError):
            return None


def checksum(features: Tensor, key: str, image_size: str) -> str:
    described = f"{key} {image_size} {features.dtype} {list(features.shape)}"
    numbers = features.contiguous().view(torch.uint8).numpy()
    return f"{zlib.crc32(numbers, zlib.crc32(described.encode())):08x}"


class FeatureCache:
    """The features of image files, from their entries in a folder or from the model.

    `blocks` last encoder blocks train; `base_sha256` is that of the weights; `stored_as` (a key of DTYPES) is the
    precision of the files. Processes may share a folder: an entry appears whole or not at all.
    """

    def __init__(self, sam: Sam, blocks: int, base_sha256: str, precision: Precision, stored_as: str,
                 folder: Path) -> None:
        self.sam, self.blocks, self.autocast, self.stored_as = sam, blocks, precision.autocast, stored_as
        self.files = FeatureFiles(folder, {})   # what a data set reads from
        self.encoded = 0                        # images that went through the frozen part so far
        self._settings = [f"features {FORMAT_VERSION}", base_sha256, f"{sam.image_encoder.img_size} px",
                          f"{blocks} blocks", precision.name, stored_as]
        self._transform = ResizeLongestSide(sam.image_encoder.img_size)
        self._damaged = 0
        self._gave_up: str | None = None        # why nothing more is written
        self._notes: list[str] = []

    def key(self, image: Path) -> str:
        """Hex SHA-256 over the image file's content and everything else that shapes its features."""
        return hashlib.sha256("\n".join([sha256_of(image), *self._settings]).encode()).hexdigest()

    def fill(self, images: Iterable[Path], batch_size: int) -> None:
        """Before the first epoch: compute what is missing, `batch_size` images together. Raises ImageError."""
        images = list(dict.fromkeys(images))
        self.files.keys.update(zip(images, map_in_threads(self.key, images)))
        missing = {self.files.path(image): image for image in images}   # files with the same content have one entry
        missing = [image for path, image in missing.items() if not path.is_file()]
        decoded = zip(missing, map_in_threads(lambda image: read_image(image, self._transform), missing))
        with tqdm(desc="frozen part", total=len(missing), unit="image", leave=False, disable=None) as bar:
            while some := list(islice(decoded, batch_size)):
                features = self._encode([pixels for _, (pixels, _) in some])
                for (image, (_, image_size)), one in zip(some, features):
                    self._write(image, one, image_size)
                bar.update(len(some))

    def fill_together(self, images: Iterable[Path], batch_size: int, ranks: Ranks) -> str:
        """`fill`, each process with some of the images; then all find them in the folder. Returns what to print."""
        began, images = time.perf_counter(), sorted(set(images))
        if ranks.world_size > 1:
            self.fill(images[ranks.rank::ranks.world_size], batch_size)
            add_up([0], ranks)  # wait for the others
        self.fill(images, batch_size)
        return "\n".join([f"features of {len(images)} images: {self.encoded} computed in "
                          f"{time.perf_counter() - began:.0f} s, kept in {self.files.folder}; so images are not "
                          "mirrored or changed in colour (--flip, --color_jitter do that instead)", *self.take_notes()])

    def complete(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches with features of all images: those that a worker could not read are computed here, and kept."""
        for batch in batches:
            features = batch.features
            if batch.decoded:
                computed = self._compute_missing(batch)
                features = computed.new_zeros(len(batch.paths), *computed.shape[1:]) if features is None else features
                features[batch.decoded] = computed
            yield replace(batch, images=None, decoded=[], features=features, blocks=self.blocks)

    def _compute_missing(self, batch: Batch) -> Tensor:
        """(D, …) features of the images that the batch has decoded."""
        for place in batch.decoded:
            try:
                self.files.load(batch.paths[place])     # meanwhile another batch or process may have written it
            except DamagedEntry:
                self._damaged += 1
                with suppress(OSError):
                    self.files.path(batch.paths[place]).unlink()
            except OSError:
                pass
        sizes = batch.input_sizes.tolist()
        features = self._encode([image[:, :sizes[place][0], :sizes[place][1]]
                                 for place, image in zip(batch.decoded, batch.images)])
        for place, one in zip(batch.decoded, features):
            self._write(batch.paths[place], one, batch.original_sizes[place])
        return features

    def take_notes(self) -> list[str]:
        """What went wrong without stopping the run, since the last call."""
        notes, self._notes = self._notes, []
        if self._damaged:
            notes.append(f"{self.files.folder}: {self._damaged} damaged entries, their features were computed anew")
            self._damaged = 0
        return notes

    def _encode(self, images: Sequence[Tensor]) -> Tensor:
        """Features of images in the model frame, (3, h, w) uint8 each, as they are kept, on the CPU. UserError."""
        sizes = torch.tensor([image.shape[1:] for image in images], device=self.sam.device)
        with torch.no_grad(), self.autocast:
            padded = pad_images(images, self.sam.image_encoder.img_size).to(self.sam.device)
            features = encode_frozen(self.sam, preprocess(padded, sizes, self.sam), self.blocks).float()
            kept = features.to(DTYPES[self.stored_as])
        if kept.isinf().any() and features.isfinite().all():
            raise UserError(f"--cache_precision {self.stored_as}: features of this model reach "
                            f"{features.abs().max():.0f}, beyond its range; give bf16 or fp32")
        self.encoded += len(images)
        return kept.cpu()

    def _write(self, image: Path, features: Tensor, image_size: tuple[int, int]) -> None:
        """To its file, unless it is there. A disk that is full or read-only is not written to again."""
        path, key, size_text = self.files.path(image), self.files.keys[image], "{} {}".format(*image_size)
        if self._gave_up or path.is_file():
            return
        metadata = {"key": key, "image_size": size_text, "crc32": checksum(features, key, size_text)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < features.nbytes + LEFT_FREE_BYTES:
                raise OSError("less than 1 GB free")
            with atomic_path(path) as temporary:
                temporary.write_bytes(save({"features": features.contiguous()}, metadata))
        except FileNotFoundError:  # somebody removed the folder just now: the next entry makes it again
            return
        except OSError as error:
            self._gave_up = error.strerror or str(error)
            self._notes.append(f"{path.parent}: no more features are kept there ({self._gave_up}); those of the other "
                               "images are computed in every epoch")
