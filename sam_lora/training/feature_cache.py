"""Frozen work is done once: what enters the first encoder block that trains is kept for each image.

With LoRA in the last blocks only, everything before them gives the same features in every epoch. They are kept in
memory as far as the budget goes, and in files that later runs find again. A file of the folder may go at any time: what
is missing is computed anew. Nothing is unpickled. One entry, `<key>.features`:
    8 hex digits: CRC-32 of all that follows the space; a JSON line {"key", "dtype", "shape"}; the numbers as they are
"""

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.data.imaging import image_size
from sam_lora.errors import UserError
from sam_lora.files import atomic_path
from sam_lora.model.batches import Batch, pad_images, read_image
from sam_lora.model.encode import encode_frozen, preprocess
from sam_lora.model.meta import ResizeLongestSide, Sam
from sam_lora.model.weights import sha256_of
from sam_lora.workers import map_in_threads

FORMAT_VERSION = 1
SUFFIX = ".features"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MAX_HEADER_BYTES = 1000
LEFT_FREE_BYTES = 1 << 30  # of the disk: a cache must not be what fills it


class FeatureCache:
    """The features of image files, from memory, from a file, or from the model.

    `blocks` last encoder blocks train; `base_sha256` is that of the weights. `precision` names what `autocast` computes
    in, `stored_as` (a key of DTYPES) what is kept. `ram_bytes` bounds the memory; `folder` None keeps nothing on disk.
    Processes may share a folder: an entry appears whole or not at all.
    """

    def __init__(self, sam: Sam, blocks: int, base_sha256: str, *, device: torch.device,
                 autocast: AbstractContextManager, precision: str, stored_as: str, ram_bytes: int,
                 folder: Path | None) -> None:
        self.sam, self.blocks, self.device, self.autocast = sam, blocks, device, autocast
        self.folder, self.stored_as = folder, stored_as
        self.side = sam.image_encoder.img_size
        self.encoded = 0                    # images that went through the frozen part so far
        self._settings = [f"features {FORMAT_VERSION}", base_sha256, f"{self.side} px", f"{blocks} blocks", precision,
                          stored_as]
        self._transform = ResizeLongestSide(self.side)
        self._keys: dict[Path, str] = {}
        self._memory: dict[str, Tensor] = {}
        self._memory_left = ram_bytes
        self._lock = threading.Lock()       # on the memory: batches are read ahead by a thread
        self._writes = folder is not None
        self._damaged: set[str] = set()     # entries not written anew yet
        self._newly_damaged = 0
        self._notes: list[str] = []

    def key(self, path: Path) -> str:
        """Hex SHA-256 over the image file's content and everything else that shapes its features."""
        if path not in self._keys:
            self._keys[path] = hashlib.sha256("\n".join([sha256_of(path), *self._settings]).encode()).hexdigest()
        return self._keys[path]

    # ---- before the first epoch

    def fill(self, paths: Iterable[Path], batch_size: int) -> None:
        """Compute what is missing, `batch_size` images together; equal files once. Raises ImageError."""
        unique = list(dict.fromkeys(paths))
        missing: dict[str, Path] = {}
        for path, key in zip(unique, map_in_threads(self.key, unique)):
            if key not in missing and not self._is_kept(key):
                missing[key] = path
        pictures = zip(missing, map_in_threads(lambda path: read_image(path, self._transform)[0], missing.values()))
        with tqdm(desc="frozen part", total=len(missing), unit="image", leave=False, disable=None) as bar:
            while some := list(islice(pictures, batch_size)):
                for (key, _), features in zip(some, self._encode([image for _, image in some])):
                    self._keep(key, features)
                bar.update(len(some))

    def _is_kept(self, key: str) -> bool:
        if key in self._memory:
            return True
        try:
            size = self._file(key).stat().st_size if self.folder else None
        except OSError:
            return False
        if size is None or size > self._memory_left:
            return size is not None
        return self._read(key) is not None  # an earlier run's entry moves into memory, and is checked on the way

    def sizes(self, paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
        """(H, W) of the images whose features are kept, so that nobody needs to decode them (`PromptedImages`)."""
        return {path: image_size(path)[::-1] for path in dict.fromkeys(paths) if self._is_kept(self.key(path))}

    # ---- in every epoch

    def attach(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches with features instead of images. Those of the next batch are read while this one is used."""
        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for batch in batches:
                current, ahead = ahead, (batch, reader.submit(self._gather, batch.paths))
                if current:
                    yield self._complete(current[0], *current[1].result())
            if ahead:
                yield self._complete(ahead[0], *ahead[1].result())

    def _gather(self, paths: list[Path]) -> tuple[list[Tensor | None], Tensor | None]:
        """What is kept of these images, and all of it in one tensor if nothing is missing."""
        found = [self._read(self.key(path)) for path in paths]
        return found, None if any(features is None for features in found) else self._stack(found)

    def _stack(self, found: list[Tensor]) -> Tensor:
        stacked = torch.stack(found)
        return stacked.pin_memory() if self.device.type == "cuda" else stacked

    def _complete(self, batch: Batch, found: list[Tensor | None], stacked: Tensor | None) -> Batch:
        if stacked is None:
            missing = [i for i, features in enumerate(found) if features is None]
            sizes = batch.input_sizes.tolist()
            images = [batch.images[i, :, :sizes[i][0], :sizes[i][1]] if batch.decoded[i]
                      else read_image(batch.paths[i], self._transform)[0] for i in missing]
            for i, features in zip(missing, self._encode(images)):
                self._keep(self.key(batch.paths[i]), features)
                found[i] = features
            with torch.inference_mode(False):  # validation asks under inference_mode, training keeps for backward
                stacked = self._stack(found)
        return replace(batch, images=None, features=stacked, blocks=self.blocks)

    def take_notes(self) -> list[str]:
        """What went wrong without stopping the run since this was last asked."""
        notes, self._notes = self._notes, []
        if self._newly_damaged:
            notes.append(f"{self.folder}: {self._newly_damaged} damaged entries, their features were computed anew")
            self._newly_damaged = 0
        return notes

    # ---- one entry

    def _encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Features of images in the model frame, (3, h, w) uint8, as they are kept. Raises UserError."""
        sizes = torch.tensor([image.shape[1:] for image in images])
        with torch.inference_mode(False), torch.no_grad(), self.autocast:
            pixels = preprocess(pad_images(images, self.side).to(self.device), sizes.to(self.device), self.sam)
            features = encode_frozen(self.sam, pixels, self.blocks).float()
            kept = features.to(DTYPES[self.stored_as])
        if kept.isinf().any() and features.isfinite().all():
            raise UserError(f"--cache_precision {self.stored_as}: features of this model reach "
                            f"{features.abs().max():.0f}, beyond its range; give bf16 or fp32")
        self.encoded += len(images)
        # clones: a slice would hold the memory of its whole batch
        return [one.clone() for one in kept.cpu()]

    def _keep(self, key: str, features: Tensor) -> None:
        self._remember(key, features)
        self._write(key, features)

    def _remember(self, key: str, features: Tensor) -> None:
        with self._lock:
            if key not in self._memory and features.nbytes <= self._memory_left:
                self._memory[key] = features
                self._memory_left -= features.nbytes

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _read(self, key: str) -> Tensor | None:
        """From memory or its file; None if it is in neither or damaged."""
        with self._lock:
            features = self._memory.get(key)
        if features is None and self.folder is not None and key not in self._damaged:
            features = self._read_file(key)
            if features is not None:
                self._remember(key, features)
        return features

    def _read_file(self, key: str) -> Tensor | None:
        path = self._file(key)
        try:
            with path.open("rb") as file:
                line = file.readline(MAX_HEADER_BYTES)
                numbers = bytearray(os.fstat(file.fileno()).st_size - len(line))
                file.readinto(numbers)
        except OSError:
            return None
        try:
            if int(line[:8], 16) != zlib.crc32(numbers, zlib.crc32(line[9:])):
                raise ValueError("checksum")
            header = json.loads(line[9:])
            if header["key"] != key:
                raise ValueError("another entry")
            return torch.frombuffer(numbers, dtype=DTYPES[header["dtype"]]).reshape(header["shape"])
        except (ValueError, KeyError, TypeError, RuntimeError):
            self._damaged.add(key)
            self._newly_damaged += 1
            with suppress(OSError):
                path.unlink()
            return None

    def _write(self, key: str, features: Tensor) -> None:
        """To its file, unless it is there. A disk that is full or read-only is not written to again."""
        if not self._writes or (key not in self._damaged and self._file(key).is_file()):
            return
        header = {"key": key, "dtype": self.stored_as, "shape": list(features.shape)}
        line = json.dumps(header).encode() + b"\n"
        numbers = memoryview(features.contiguous().view(torch.uint8).numpy()).cast("B")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < len(numbers) + LEFT_FREE_BYTES:
                raise OSError("less than 1 GB free")
            with atomic_path(self._file(key)) as temporary, temporary.open("wb") as file:
                file.write(b"%08x " % zlib.crc32(numbers, zlib.crc32(line)) + line)
                file.write(numbers)
            self._damaged.discard(key)
        except FileNotFoundError:  # somebody removed the folder just now: the next entry makes it again
            return
        except OSError as error:
            self._notes.append(f"{self.folder}: no more features are kept there ({error.strerror or error}); what "
                               "memory does not hold is computed in every epoch")
            self._writes = False
