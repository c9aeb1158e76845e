"""An NVIDIA card that is there though torch cannot use it: which card, which driver, what to install.

Free of torch: torch's side (its version, the CUDA it was built for, its own complaint) comes in as text.
"""

import contextlib
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10  # seconds for nvidia-smi, which takes several on a machine with many cards and hangs on a broken one
WSL_FOLDER = "usr/lib/wsl/lib"  # not on PATH in every shell
PIP_INDEX = "https://download.pytorch.org/whl/"
# The oldest Linux driver for a build of torch, and the build: docs.nvidia.com/deploy/cuda-compatibility, where a
# driver runs every minor version of its CUDA.
DRIVERS = (((580, 65, 6), "cu130"), ((570, 26), "cu128"), ((525, 60, 13), "cu126"), ((450, 80, 2), "cu118"))
OLDEST_DRIVER = {13: (580, 65, 6), 12: (525, 60, 13), 11: (450, 80, 2)}  # by the CUDA version that torch is built for
OLD_CARDS_DRIVER = (525, 60, 13)  # of the build for CUDA 12.6, the last one with kernels for cards before Turing (T4)

Version = tuple[int, ...]


@dataclass(frozen=True)
class Card:
    """An NVIDIA card of this machine, the first of several. `driver` is None where it could not be read."""

    name: str
    driver: Version | None
    device_files: bool = True  # False: /dev has none, so this process cannot reach the card

    def __str__(self) -> str:
        return f"{self.name} (driver {_text(self.driver) if self.driver else 'unknown'})"


@dataclass(frozen=True)
class TorchBuild:
    """`version`: torch.__version__. `cuda`: torch.version.cuda, None in a build without CUDA."""

    version: str
    cuda: str | None

    def __str__(self) -> str:
        return f"torch {self.version} ({f'built for CUDA {self.cuda}' if self.cuda else 'a build without CUDA'})"


def find_card(root: Path = Path("/"), search_path: str | None = None, patience: float = PATIENCE) -> Card | None:
    """The NVIDIA card of this machine, by the driver's files below `root`/proc or by nvidia-smi; None without one.

    `search_path`: where nvidia-smi is looked for, as in PATH, which is the default; then WSL's folder. It is given
    `patience` seconds. Nothing is started on a machine that has neither.
    """
    card = _card_of_driver(root)
    if card is not None and card.driver is not None:
        return card
    program = shutil.which("nvidia-smi", path=search_path) or shutil.which("nvidia-smi", path=str(root / WSL_FOLDER))
    return (_card_of_program(program, patience) if program else None) or card


def hidden(visible_devices: str | None) -> bool:
    """Does this value of CUDA_VISIBLE_DEVICES hide all cards? None: it is not set."""
    return visible_devices is not None and visible_devices.split(",")[0].strip() in ("", "-1", "NoDevFiles")


def why_unused(card: Card, torch_build: TorchBuild, complaint: str, visible_devices: str | None = None) -> str:
    """Why torch cannot use `card`, and what to do, on one line without a full stop.

    `complaint`: torch's own words; `visible_devices`: the environment's CUDA_VISIBLE_DEVICES.
    """
    reason, cure = _reason_and_cure(card, torch_build, complaint, visible_devices)
    return f"{card} is there, but {torch_build} cannot use it: {reason}; {cure}"


def _reason_and_cure(card: Card, torch_build: TorchBuild, complaint: str, visible_devices: str | None
                     ) -> tuple[str, str]:
    if torch_build.cuda is None:
        return "it computes on the CPU only", f"install a build for CUDA: {pip_command(card.driver)}"
    needed = OLDEST_DRIVER.get(int(torch_build.cuda.partition(".")[0]))
    if card.driver and needed and card.driver < needed:
        return (f"it needs driver {_text(needed)} or newer",
                f"update the driver, or install a build for yours: {pip_command(card.driver)}")
    if hidden(visible_devices):
        return f"CUDA_VISIBLE_DEVICES is {visible_devices!r}", "unset it"
    if not card.device_files:
        return (f"there is no /dev/nvidia0 ({complaint})",
                "start a container with its GPUs (docker run --gpus all), or run nvidia-smi once as root")
    if visible_devices is not None:
        return f"{complaint}, with CUDA_VISIBLE_DEVICES {visible_devices!r}", "unset it, or name a card that is there"
    if "no kernel image" in complaint:  # builds for CUDA 12.8 and later lack those of old cards, earlier ones of new
        old_card = _version(torch_build.cuda) >= (12, 8)
        return complaint, f"install a build that has one: {pip_command(OLD_CARDS_DRIVER if old_card else card.driver)}"
    return complaint, "see whether nvidia-smi works; after an update of the driver, restart the machine"


def pip_command(driver: Version | None) -> str:
    """What installs the newest torch that runs on `driver`; an unknown one counts as new."""
    index = next((index for oldest, index in DRIVERS if driver is None or driver >= oldest), None)
    if index is None:
        return f"none is left for a driver this old, update it to {_text(DRIVERS[0][0])} or newer first"
    # pip takes an installed torch of the same version for the right one, whatever it was built for
    return f"pip uninstall -y torch torchvision && pip install torch torchvision --index-url {PIP_INDEX}{index}"


def _card_of_driver(root: Path) -> Card | None:
    """What the kernel's driver says of itself in /proc."""
    folder = root / "proc/driver/nvidia"
    models = [re.search(r"^Model:\s*(\S.*?)\s*$", _read(path), re.MULTILINE)
              for path in sorted(folder.glob("gpus/*/information"))]
    version = re.search(r"\b\d{3,4}(?:\.\d+){1,2}\b", _read(folder / "version"))
    if not models and version is None:
        return None
    name = _printable(next((match[1] for match in models if match), "an NVIDIA card"))
    return Card(name, _version(version[0]) if version else None, any(root.glob("dev/nvidia[0-9]*")))


def _card_of_program(program: str, patience: float) -> Card | None:
    """What nvidia-smi lists; None if it fails, hangs, or lists no card."""
    try:
        process = subprocess.Popen([program, "--query-gpu=name,driver_version", "--format=csv,noheader"],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    try:
        output = process.communicate(timeout=patience)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        process.kill()
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # inside a broken driver it cannot be killed
            process.wait(1)
        return None
    match = re.search(r"^([^,\n]+),\s*(\d{3,4}(?:\.\d+){1,2})\s*$", output, re.MULTILINE)
    return Card(_printable(match[1]), _version(match[2])) if match and process.returncode == 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _printable(text: str) -> str:
    return re.sub(r"[^\x20-\x7e]+", " ", text).strip()[:80]


def _version(text: str) -> Version:
    return tuple(map(int, text.split(".")))


def _text(version: Version) -> str:
    """A driver's version as NVIDIA writes it, e.g. 525.60.13 and 450.80.02."""
    return ".".join([str(version[0]), *(f"{part:02}" for part in version[1:])])
