"""plots.py: training curves and the comparison plot."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from sam_lora import plots

NAN = float("nan")


LOG = pd.DataFrame({"epoch": [0, 1, 2], "train_loss": [NAN, 0.9, 0.5], "val_loss": [1.2, 0.8, 0.7],
                    "train_iou": [NAN, 0.5, 0.7], "val_iou": [0.4, 0.6, 0.5], "learning_rate": [NAN, 1e-4, 0.0]})


@pytest.mark.parametrize("log", [
    pytest.param(LOG, id="two epochs"), pytest.param(LOG[:1], id="untuned only"),
    pytest.param(LOG.assign(val_loss=NAN, val_iou=NAN), id="no validation"),
    pytest.param(LOG[:1].assign(val_loss=NAN, val_iou=NAN), id="nothing yet"),
])
def test_training_curves(tmp_path: Path, log):
    path = tmp_path / "curves.png"
    plots.training_curves(log, path)
    picture = cv2.imread(str(path))
    assert picture.shape[1] > picture.shape[0] > 200
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("tuned", "interval"), [
    pytest.param(lambda base: np.clip(base + 0.2, 0, 1), (0.1, 0.2), id="better"),
    pytest.param(lambda base: base, (0.0, 0.0), id="the same"),
    pytest.param(lambda base: base[::-1], (NAN, NAN), id="no interval"),
])
@pytest.mark.parametrize("count", [1, 30, 2000])
def test_comparison_plot(tmp_path: Path, tuned, interval, count):
    base = np.linspace(0, 1, count)
    plots.comparison_plot(base, tuned(base), float((tuned(base) - base).mean()), interval, tmp_path / "c.png")
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture.shape[1] > picture.shape[0] > 400
    assert [path.name for path in tmp_path.iterdir()] == ["c.png"]


def test_the_comparison_plot_has_each_object_on_its_side_of_the_diagonal(tmp_path):
    base = np.full(40, 0.5)
    pictures = {}
    for name, tuned in (("better", np.linspace(0.6, 1, 40)), ("worse", np.linspace(0, 0.4, 40))):
        plots.comparison_plot(base, tuned, 0.0, (NAN, NAN), tmp_path / f"{name}.png")
        pictures[name] = cv2.imread(str(tmp_path / f"{name}.png")).astype(int)
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    blue = {name: (picture[..., 0] > picture[..., 2] + 60).sum() for name, picture in pictures.items()}
    assert blue["better"] > 1000 > blue["worse"]


def test_training_curves_need_no_screen(tmp_path):
    code = ("import sys, pandas as pd; from sam_lora import plots\n"
            "log = pd.DataFrame({'epoch': [0, 1]} | {name: [0.5, 0.6] for name in "
            "('train_loss', 'val_loss', 'train_iou', 'val_iou', 'learning_rate')})\n"
            f"plots.training_curves(log, {str(tmp_path / 'a.png')!r})\n"
            f"plots.comparison_plot(log['val_iou'].values, log['train_iou'].values, 0, (0, 0), "
            f"{str(tmp_path / 'b.png')!r})\n"
            "print('matplotlib.pyplot' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(plots.__file__).parents[1], env={"MPLBACKEND": "TkAgg", "PATH": ""})
    assert done.stdout.strip() == "False"
