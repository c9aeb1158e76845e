"""What several test files share: where temporary files go, running scripts, a small set of crops with its tables, SAM
weights, a checkpoint."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import new_paths
import numpy as np
import pytest

# Tests are small: one thread each is several times faster than two that wait for one another on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"
cv2.setNumThreads(1)
# A shell's `&` hands Ctrl-C on ignored, and so it would be for the processes whose Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
WATCH = ROOT / "tests" / "watch"
# A socket's path has 103 bytes at most on macOS, 107 on Linux; multiprocessing adds /pymp-xxxxxxxx/listener-xxxxxxxx.
LONGEST_TEMPORARY_FOLDER = 70
SLOWEST_FILES = ("test_gpu_run.py", "test_train.py", "test_export_sam.py", "test_walkthrough.py", "test_distributed.py",
                 "test_inference_processes.py")
PATIENCE = 120  # seconds for something that must come; no test passes or fails by how soon it does
TRAIN_ROWS, VAL_ROWS, TEST_ROWS = 6, 4, 6


# ---- everything temporary lives below pytest's own folder -------------------------------------------------

@pytest.hookimpl(trylast=True)  # after pytest's own, which settles its folder
def pytest_configure(config: pytest.Config) -> None:
    """Point this process and all that it starts (pytest-xdist's workers too) to pytest's own folder."""
    if not is_xdist_worker(config):
        base = config._tmp_path_factory.getbasetemp().resolve()
        temporary, caches = base / "t", base / "caches"
        temporary.mkdir()
        caches.mkdir()
        os.environ[new_paths.ALLOWED_FOLDER] = str(base)
        if os.name != "nt" and len(os.fsencode(temporary)) > LONGEST_TEMPORARY_FOLDER:
            short = Path(tempfile.mkdtemp(prefix="sam-lora-"))
            config.add_cleanup(lambda: shutil.rmtree(short))
            (short / "t").symlink_to(temporary)
            temporary = short / "t"
        for variable in ("TMPDIR", "TEMP", "TMP"):
            os.environ[variable] = str(temporary)
        tempfile.tempdir = None  # look at these variables again
        for variable in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
            os.environ[variable] = str(caches)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(WATCH), os.environ.get("PYTHONPATH")]))
    new_paths.watch()


@pytest.hookimpl(trylast=True)  # after pytest-xdist's own, which waits for its workers to end
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not is_xdist_worker(session.config) and new_paths.left_behind(allowed_folder()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for path, test in new_paths.left_behind(allowed_folder()).items():
        terminalreporter.write_line(f"LEFT BEHIND {path}, outside {allowed_folder()}, by {test}", red=True)


def is_xdist_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def allowed_folder() -> Path:
    return Path(os.environ[new_paths.ALLOWED_FOLDER])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, so that at the end no worker waits for one of them."""
    order = {name: number for number, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


# ---- helpers ----------------------------------------------------------------------------------------------

def files_below(folder: Path) -> set[str]:
    """The files in `folder` and its subfolders, as relative POSIX paths."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run_python(*arguments: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
               ) -> subprocess.CompletedProcess[str]:
    """Run a Python of its own to its end, e.g. run_python("-c", code); `env` is added to this process's environment."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env={**os.environ, **(env or {})},
                          capture_output=True, text=True)


def run_script(name: str, *flags: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None
               ) -> subprocess.CompletedProcess[str]:
    """Run a script of the repository to its end as a user would, e.g. run_script("train.py", "--resume")."""
    return run_python(ROOT / name, *flags, cwd=cwd, env=env)


def wait_until(fact: Callable[[], object], process: subprocess.Popen) -> None:
    """Return once `fact()` is true, e.g. that a file is there; fail if `process` ends first or after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ended = process.poll() is not None  # before the look, which may come true just before the end
        if fact():
            return
        assert not ended, f"the process ended with {process.returncode} before what was waited for"
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- crops, weights, a checkpoint -------------------------------------------------------------------------

@dataclass(frozen=True)
class Crops:
    """A folder as the stages before training leave it. Table cells are relative to `folder`."""

    folder: Path
    train_csv: Path
    val_csv: Path
    test_csv: Path


@pytest.fixture
def crops(tmp_path: Path) -> Crops:
    """Non-square crops of two classes, `Class_3_red disc` (id 3) and `Class_7_green bar`, each row its own image.

    The object is brighter than its textured ground, so a few training steps can find it.
    """
    return make_crops(tmp_path / "data")


def make_crops(folder: Path, seed: int = 0) -> Crops:
    """Write class folders, manifest and tables below `folder`."""
    import pandas as pd
    rng = np.random.default_rng(seed)
    tables, manifest, number = {}, [], 0
    for split, count in (("train", TRAIN_ROWS), ("val", VAL_ROWS), ("test", TEST_ROWS)):
        rows = []
        for i in range(count):
            class_id, slug, name = ((3, "red_disc", "red disc"), (7, "green_bar", "green bar"))[i % 2]
            image, mask = make_crop(rng, disc=i % 2 == 0)
            stem = f"photo{number}_0001.png"
            number += 1
            base = Path("processed_dataset") / f"Class_{class_id}_{slug}"
            for kind, picture in (("images", image[:, :, ::-1]), ("masks", mask)):
                (folder / base / kind).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / base / kind / stem), picture)
            rows.append({"image": (base / "images" / stem).as_posix(), "label": (base / "masks" / stem).as_posix(),
                         "points": points_text(mask)})
            manifest.append({"image_path": f"{base.name}/images/{stem}", "mask_path": f"{base.name}/masks/{stem}",
                             "class_id": class_id, "class_name": name, "source_image": f"{stem[:-9]}.jpg"})
        tables[split] = folder / f"{split}_reformatted.csv"
        pd.DataFrame(rows).to_csv(tables[split], index=False)
    pd.DataFrame(manifest).to_csv(folder / "processed_dataset" / "instances.csv", index=False)
    return Crops(folder, tables["train"], tables["val"], tables["test"])


def make_crop(rng: np.random.Generator, disc: bool) -> tuple[np.ndarray, np.ndarray]:
    """One object on a noisy ground: (H, W, 3) uint8 RGB and its (H, W) 0/255 mask, never square."""
    height = int(rng.integers(40, 60))
    width = height + int(rng.integers(11, 40))
    mask = np.zeros((height, width), np.uint8)
    centre = (width // 2 + int(rng.integers(-5, 6)), height // 2 + int(rng.integers(-4, 5)))
    if disc:
        cv2.circle(mask, centre, height // 4, 255, -1)
    else:
        cv2.rectangle(mask, (centre[0] - width // 4, centre[1] - 6), (centre[0] + width // 4, centre[1] + 6), 255, -1)
    image = rng.integers(30, 90, (height, width, 3)).astype(np.uint8)
    image[mask > 0, 0 if disc else 1] += 140
    return image, mask


def points_text(mask: np.ndarray) -> str:
    """The cell `points`: the object's centre and one point on either side of it."""
    ys, xs = np.nonzero(mask)
    x, y = round(xs.mean()), round(ys.mean())
    return f"[[{x},{y}],[{x - 4},{y}],[{x + 4},{y}]]"


@pytest.fixture(scope="session")
def mini_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vit_mini .pth in Meta's format with random weights, drawn so that masks are neither empty nor full."""
    import torch
    path = tmp_path_factory.mktemp("weights") / "mini.pth"
    torch.save(random_sam("vit_mini").state_dict(), path)
    return path


def random_sam(model_type: str, image_size: int | None = None, seed: int = 0):
    """`build_sam` with weights whose output varies: the default initialisation leaves position tables at zero."""
    import torch

    from sam_lora.model.sam import build_sam
    torch.manual_seed(seed)
    sam = build_sam(model_type, image_size)
    with torch.no_grad():
        for name, parameter in sam.named_parameters():
            if "pos_embed" in name or "rel_pos" in name:
                parameter.normal_(std=0.2)
    return sam


@pytest.fixture(scope="session")
def mini_checkpoint(mini_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as train.py writes it, on `mini_weights`: LoRA of rank 4 and the decoder, both off the base."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "sam_lora_final.ckpt", mini_weights)


def make_checkpoint(path: Path, base: Path, model_type: str = "vit_mini", image_size: int | None = None) -> Path:
    import torch

    from sam_lora.model.checkpoints import library_versions, prepare_for_training, save_checkpoint, trained_state
    from sam_lora.model.sam import load_sam
    sam, sha256 = load_sam(model_type, base, image_size)
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["qkv"], "blocks": None}
    prepare_for_training(sam, lora, train_decoder=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    header = {"model_type": model_type, "image_size": sam.image_encoder.img_size, "base_sha256": sha256, "lora": lora,
              "train_decoder": True, "prompt": "3 points", "prompt_mix": {"table": 1.0, "box": 0.5},
              "correction_rounds": 2, "epoch": 2, "metrics": {"val_iou": 0.5}, "args": {},
              "versions": library_versions()}
    save_checkpoint(path, header, trained_state(sam))
    return path


@pytest.fixture
def infer(crops, mini_weights, mini_checkpoint, tmp_path, monkeypatch):
    """Calls run_inference.py with flags of its own; later flags win. Results go to tmp_path/out."""
    import run_inference
    monkeypatch.chdir(tmp_path)

    def call(*flags) -> Path:
        arguments = ["--checkpoint", mini_checkpoint, "--base_checkpoint", mini_weights, "--output_dir", "out",
                     "--device", "cpu", *flags]
        if not {"--image", "--images_dir", "--prompts_csv"} & {*flags}:
            arguments += [] if "--test_csv" in flags else ["--test_csv", crops.test_csv]
        run_inference.main(run_inference.get_args_parser().parse_args([str(argument) for argument in arguments]))
        return tmp_path / "out"
    return call


@pytest.fixture
def base_results(crops, mini_weights, tmp_path) -> Path:
    """The results table of the base model on the test table."""
    import run_base_sam_inference
    folder = tmp_path / "base"
    run_base_sam_inference.main(run_base_sam_inference.get_args_parser().parse_args(
        ["--model_type", "vit_mini", "--checkpoint", str(mini_weights), "--test_csv", str(crops.test_csv),
         "--output_dir", str(folder), "--num_pictures", "0", "--device", "cpu"]))
    return folder / "base_sam_results.csv"
