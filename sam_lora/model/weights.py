"""SAM's weights: find the file, download it, read it."""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.errors import UserError
from sam_lora.files import STAGING_PREFIX
from sam_lora.model.sam_types import SAM_TYPES

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
WEIGHTS_FOLDER = Path("weights")
SHIPPED_WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"


def load_plain(path: Path, expected: str) -> object:
    """What a torch file holds, on the CPU; only tensors and plain types are unpickled, so no code of a stranger runs.

    Raises UserError ending in `expected`, which says what the file should have been.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {expected}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols of files that are not torch's own
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a file that is not its own
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {expected}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a plain .pth file, on the CPU. Never unpickles anything but tensors and plain types."""
    state = load_plain(path, "expected SAM weights (.pth), a plain state dict as published by Meta")
    if isinstance(state, dict) and state.get("format") == "sam-lora":
        raise UserError(f"{path}: is a LoRA checkpoint of train.py; expected base SAM weights. "
                        "Use run_inference.py with it, or export_sam.py to make a plain SAM")
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no plain state dict; expected SAM weights as published by Meta")
    return state


def find_weights(model_type: str, folder: Path = WEIGHTS_FOLDER, url: str = WEIGHTS_URL) -> Path:
    """The weights file of a type: shipped, in `folder`, or downloaded there."""
    kind = SAM_TYPES[model_type]
    shipped = SHIPPED_WEIGHTS_FOLDER / kind.weights_file
    if shipped.is_file():
        return shipped
    if not kind.weights_sha256:
        raise UserError(f"{shipped}: missing, and published nowhere else; it comes with the project: "
                        f"restore it (git checkout {shipped.name}), or name a copy with --checkpoint")
    path = folder / kind.weights_file
    if not path.is_file():
        download(url + kind.weights_file, path, kind.weights_bytes, kind.weights_sha256)
    return path


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Fetch `url` to `path` with a progress bar; resumes, checks the SHA-256, renames when whole.

    A partial file stays beside `path` for the next try. Raises UserError, saying where to get the file by hand.
    """
    partial = path.with_name(f"{STAGING_PREFIX}{path.name}")
    done = partial.stat().st_size if partial.exists() else 0
    by_hand = f"download {url} by hand and put it at {path}, or name your copy with --checkpoint"
    if done < size:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                path.parent.mkdir(parents=True, exist_ok=True)
                if done and response.status != 206:  # the server does not resume: from the start
                    done = 0
                with partial.open("ab" if done else "wb") as file, tqdm(
                        desc=path.name, total=size, initial=done, unit="B", unit_scale=True) as bar:
                    while chunk := response.read(1 << 20):
                        file.write(chunk)
                        bar.update(len(chunk))
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"{path}: not there, and the download failed ({reason}); {by_hand}") from error
    if partial.stat().st_size < size:
        raise UserError(f"{path}: the download stopped at {partial.stat().st_size:,} of {size:,} bytes; "
                        f"run again to resume, or {by_hand}")
    found = sha256_of(partial)
    if found != sha256:
        partial.unlink()
        raise UserError(f"{path}: the download has SHA-256 {found[:12]}…, expected {sha256[:12]}…; it was removed. "
                        f"Run again, or {by_hand}")
    shutil.move(partial, path)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
