"""SAM's weights: find the file or download it, read it, compare it with a model."""

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sam_lora.errors import UserError
from sam_lora.files import STAGING_PREFIX
from sam_lora.sam_types import SAM_TYPES

WEIGHTS_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
WEIGHTS_FOLDER = Path("weights")
SHIPPED_WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"


# ---- finding the file -----------------------------------------------------------------------------------------

def find_weights(model_type: str, folder: Path = WEIGHTS_FOLDER, url: str = WEIGHTS_URL) -> Path:
    """The weights file of a type: the one that ships, one in `folder`, or one downloaded to `folder`."""
    kind = SAM_TYPES[model_type]
    shipped = SHIPPED_WEIGHTS_FOLDER / kind.weights_file
    if shipped.is_file():
        return shipped
    if not kind.weights_sha256:
        raise UserError(f"{shipped}: missing, and published nowhere else, since it ships with this project; "
                        f"restore it (git checkout {shipped.name}) or name a copy with --checkpoint")
    path = folder / kind.weights_file
    if not path.is_file():
        download(url + kind.weights_file, path, kind.weights_bytes, kind.weights_sha256)
    return path


def download(url: str, path: Path, size: int, sha256: str) -> None:
    """Download `url` to `path` with a progress bar: resumes, checks the SHA-256, renames the file once it is complete.

    A partial file stays beside `path` for the next attempt. The UserError says how to get the file by hand.
    """
    partial = path.with_name(f"{STAGING_PREFIX}{path.name}")
    done = partial.stat().st_size if partial.exists() else 0
    by_hand = f"download {url} by hand to {path}, or name your copy with --checkpoint"
    if done < size:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                path.parent.mkdir(parents=True, exist_ok=True)
                if done and response.status != 206:  # the server cannot resume: start over
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
    actual = sha256_of(partial)
    if actual != sha256:
        partial.unlink()
        raise UserError(f"{path}: the download has SHA-256 {actual[:12]}…, expected {sha256[:12]}…; it was deleted. "
                        f"Run again, or {by_hand}")
    shutil.move(partial, path)


# ---- reading it -----------------------------------------------------------------------------------------------

def load_plain(path: Path, expected: str) -> object:
    """The contents of a torch file, on the CPU. Only tensors and plain types are unpickled, so no foreign code runs.

    Raises UserError, ending in `expected`: what the file should have been.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; {expected}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that torch did not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a file it did not write
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); {expected}") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a plain .pth file, on the CPU. Raises UserError for any other file, LoRA checkpoints included."""
    state = load_plain(path, "expected SAM weights (.pth), a plain state dict as published by Meta")
    if isinstance(state, dict) and state.get("format") == "sam-lora":
        raise UserError(f"{path}: is a LoRA checkpoint of train.py; expected base SAM weights. "
                        "Run it with run_inference.py, or make a plain SAM of it with export_sam.py")
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no plain state dict; expected SAM weights as published by Meta")
    return state


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def misfit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How the names and shapes of `state` differ from the expected ones, in a few words; empty if they do not."""
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    reshaped = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    if not (missing or unknown or reshaped):
        return ""
    return (f"tensors missing: {len(missing)}, unknown: {len(unknown)}, of another shape: {len(reshaped)}; "
            f"e.g. {(missing or unknown or reshaped)[0]}")
