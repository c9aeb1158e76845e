"""What an inference script is asked to do: which model, which images, which output folder and device. No torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sam_lora import contracts
from sam_lora.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import torch

    from sam_lora.model.meta import Sam


@dataclass(frozen=True)
class Candidate:
    """A model to predict with. `load` is only called once input and output folder have been checked; it is told which
    kinds of prompts will be asked for (`samples.prompt_kinds`).

    `name` and `training_folder` (where train.py left its log and curves) are for the report.
    """

    load: Callable[[set[tuple[int, bool]]], "Sam"]
    tuned: bool
    name: str = ""
    training_folder: Path | None = None

    @property
    def prefix(self) -> str:
        """How the names of its result files begin."""
        return contracts.TUNED_RESULTS_PREFIX if self.tuned else contracts.BASE_RESULTS_PREFIX


@dataclass(frozen=True)
class SampleTable:
    """Score every row of a table.

    `compare_to`: the other model's results on it; `prompt_kinds`: score other kinds of prompts too.
    """

    test_csv: str
    compare_to: str | None = None
    prompt_kinds: bool = False


@dataclass(frozen=True)
class SinglePhoto:
    """Predict objects of one photo without ground truth.

    `prompts`: (points, point_labels, box) of each object, xy pixels of the photo, None for what an object lacks;
    without point_labels every point is foreground.
    """

    image: str
    prompts: Sequence[tuple]


@dataclass(frozen=True)
class PhotoFolder:
    """Predict the objects that a table of prompts names, in the photos below a folder, without ground truth."""

    images_dir: str
    prompts_csv: str
    save_yolo: bool = False


@dataclass(frozen=True)
class Wanted:
    """Which objects are to be found without a prompt. `threshold` None: from the model's own score on; `classes` None:
    all. `points_per_side`: of the grid of clicks, for a model as released; None: as suits it."""

    threshold: float | None = None
    classes: Sequence[str] | None = None
    points_per_side: int | None = None


@dataclass(frozen=True)
class FindTable:
    """Find the objects of a table's photos without its prompts, and score what was found."""

    test_csv: str
    wanted: Wanted


@dataclass(frozen=True)
class FindPhotos:
    """Find all objects in photos without ground truth: those below a folder, or one."""

    images_dir: str | None
    image: str | None
    wanted: Wanted
    save_yolo: bool = False


Request = SampleTable | SinglePhoto | PhotoFolder | FindTable | FindPhotos


@dataclass(frozen=True)
class Destination:
    """Where the results go, and how many samples are drawn there; `seed` decides which ones."""

    folder: Path
    overwrite: bool = False
    num_pictures: int = 30
    seed: int = 42


@dataclass(frozen=True)
class Runtime:
    """What the computing runs on.

    `batch_size` None: as many images at once as suit the device. `precision`: auto, fp32, bf16 or fp16.
    `ranks`: of several processes, which share the work, this is one.
    """

    device: "torch.device"
    batch_size: int | None = None
    num_workers: int = 0
    precision: str = "auto"
    ranks: Ranks = ALONE
