"""Batches for a fast device: workers fill a store on it, and each step draws from the store.

A GPU trains on samples faster than processors paint them. So a sample stays on the device until newer ones need its
place; meanwhile steps draw it again, each time mirrored, recoloured and prompted anew.
"""

import queue
import threading
from collections.abc import Iterable, Iterator

import torch
from augmentation import augmented
from torch import Tensor

WAITING = 8  # batches of the workers that may lie on the device before they are stored


class Replay:
    """The newest samples, up to `capacity` images with their regions, all on one device."""

    def __init__(self, capacity: int, device: torch.device, generator: torch.Generator) -> None:
        self.capacity, self.device, self.generator = capacity, device, generator
        self.entries: dict[str, Tensor] = {}
        self.added = self.drawn = 0

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: dict[str, Tensor]) -> None:
        """Store a batch as `scene_batches.collate` makes it, on the device already."""
        count = len(batch["images"])
        for name, tensor in batch.items():
            by_image = tensor.unflatten(0, (count, -1))  # each image has as many rows
            if name not in self.entries:
                self.entries[name] = torch.empty((self.capacity, *by_image.shape[1:]), dtype=tensor.dtype,
                                                 device=self.device)
            place = self.added % self.capacity
            until_end = min(count, self.capacity - place)
            self.entries[name][place:place + until_end] = by_image[:until_end]
            self.entries[name][:count - until_end] = by_image[until_end:]
        self.added += count

    def draw(self, count: int) -> dict[str, Tensor]:
        """A batch of `count` images, any of them as likely, seen anew."""
        picked = torch.randint(len(self), (count,), device=self.device, generator=self.generator)
        self.drawn += count
        return augmented({name: stored[picked].flatten(0, 1) for name, stored in self.entries.items()}, self.generator)


class Feeder:
    """Takes batches from the workers and copies them to the device, in a thread: training never waits for a copy."""

    def __init__(self, batches: Iterable[dict[str, Tensor]], device: torch.device) -> None:
        self.device = device
        self.ready: queue.Queue[dict[str, Tensor] | BaseException] = queue.Queue(WAITING)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(batches,), daemon=True)
        self.thread.start()

    def run(self, batches: Iterable[dict[str, Tensor]]) -> None:
        try:
            stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
            for batch in batches:
                with torch.cuda.stream(stream):  # a copy on training's own stream would wait for its steps
                    batch = {name: torch.as_tensor(array).to(self.device) for name, array in batch.items()}
                if stream is not None:
                    stream.synchronize()
                self.put(batch)
                if self.stopped.is_set():
                    return
        except BaseException as error:  # a worker's: training has to end with it
            self.put(error)

    def put(self, item: dict[str, Tensor] | BaseException) -> None:
        while not self.stopped.is_set():
            try:
                return self.ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def take(self, wait: bool) -> dict[str, Tensor] | None:
        """The next batch; None where there is none yet, unless told to wait. Raises what a worker raised."""
        try:
            item = self.ready.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        if self.device.type == "cuda":
            for tensor in item.values():  # made on another stream: its memory must outlive the use on this one
                tensor.record_stream(torch.cuda.current_stream(self.device))
        return item

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join()


def replayed(feeder: Feeder, replay: Replay, count: int, least: int) -> Iterator[dict[str, Tensor]]:
    """Batches of `count` images from the store, without end, once it holds `least`; what is ready is stored first."""
    while True:
        while (batch := feeder.take(wait=len(replay) < least)) is not None:
            replay.add(batch)
        yield replay.draw(count)
