"""Plots as PNG files: the training curves, base against tuned. matplotlib is used nowhere else, and opens no window."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sam_lora.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd


def training_curves(log: "pd.DataFrame", path: str | Path) -> None:
    """Loss, IoU and learning rate by epoch, as one PNG. `log`: training_log.csv; its epoch 0 is the untuned model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, iou, rate = figure.subplots(1, 3)
    blue, orange = (0, 114 / 255, 178 / 255), (213 / 255, 94 / 255, 0)
    for axes, column, label, colour, marker in (
            (loss, "train_loss", "training", blue, "o"), (loss, "val_loss", "validation", orange, "s"),
            (iou, "train_iou", "training", blue, "o"), (iou, "val_iou", "validation", orange, "s"),
            (rate, "learning_rate", None, blue, "o")):
        known = log[["epoch", column]].dropna()
        if len(known):
            axes.plot(known["epoch"], known[column], color=colour, marker=marker, markersize=4, label=label)
    validated = log[["epoch", "val_iou"]].dropna()
    untuned, tuned = validated[validated["epoch"] == 0], validated[validated["epoch"] > 0]
    if len(untuned):
        value = untuned["val_iou"].iloc[0]
        iou.axhline(value, color="grey", linestyle=":", label=f"untuned, validation {value:.3f}")
    if len(tuned):
        best = tuned.loc[tuned["val_iou"].idxmax()]
        iou.plot(best["epoch"], best["val_iou"], color=orange, marker="*", markersize=14, linestyle="none",
                 label=f"best, epoch {best['epoch']:.0f}: {best['val_iou']:.3f}")
    for axes, title in ((loss, "loss"), (iou, "IoU"), (rate, "learning rate at the end of the epoch")):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.set_xlim(-0.4, max(1, log["epoch"].max()) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def comparison_plot(base: np.ndarray, tuned: np.ndarray, mean: float, interval: tuple[float, float],
                    path: str | Path) -> None:
    """Paired IoUs against each other, and their differences with mean and 95 % interval (NaN: none), as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 5), layout="constrained")
    FigureCanvasAgg(figure)
    scatter, histogram = figure.subplots(1, 2)
    difference = tuned - base
    blue, orange = (0, 114 / 255, 178 / 255), (213 / 255, 94 / 255, 0)
    size, alpha = (28, 0.7) if len(base) < 500 else (8, 0.35)
    for chosen, colour, marker, name in ((difference > 0, blue, "o", "tuned is better"),
                                         (difference < 0, orange, "s", "base is better"),
                                         (difference == 0, "grey", "d", "the same")):
        if chosen.any():
            scatter.scatter(base[chosen], tuned[chosen], size, color=colour, alpha=alpha, marker=marker, linewidths=0,
                            label=f"{name}: {int(chosen.sum())}")
    scatter.plot([0, 1], [0, 1], color="grey", linewidth=1)
    scatter.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xlabel="IoU of the base model",
                ylabel="IoU of the tuned model", title="each object")
    scatter.legend(fontsize=9, loc="lower right")
    reach = max(0.05, float(np.abs(difference).max()))
    edges = np.linspace(-reach, reach, 42)  # 41 bins: no edge at 0
    histogram.hist(difference[difference > edges[21]], edges, color=blue, alpha=0.7)
    histogram.hist(difference[difference < edges[20]], edges, color=orange, alpha=0.7)
    histogram.hist(difference[(difference >= edges[20]) & (difference <= edges[21])], edges, color="grey", alpha=0.7)
    histogram.axvline(0, color="grey", linewidth=1)
    text = f"mean {mean:+.3f}"
    if np.isfinite(interval).all():
        histogram.axvspan(*interval, color="black", alpha=0.15, label=f"95 % interval {interval[0]:+.3f} to "
                                                                      f"{interval[1]:+.3f}")
    histogram.axvline(mean, color="black", linestyle="--", label=text)
    histogram.set(xlabel="IoU tuned - IoU base", ylabel="objects", title="differences")
    histogram.legend(fontsize=9, loc="upper left")
    for axes in (scatter, histogram):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def precision_recall_curve(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: str | Path) -> None:
    """Precision over recall as the score falls, of each class (name -> recalls, precisions), as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (recalls, precisions) in curves.items():
        axes.plot(recalls, precisions, linewidth=1.5, marker=".", markersize=3, label=name.replace("$", r"\$"))
    axes.set(xlabel="recall", ylabel="precision", title="objects found without a prompt, mask IoU 0.5 or more",
             xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def click_curve(curves: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Mean IoU after 1, 2, … clicks of each model ("base", "tuned"), as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    styles = {"base": ((213 / 255, 94 / 255, 0), "s"), "tuned": ((0, 114 / 255, 178 / 255), "o")}
    for name, ious in curves.items():
        colour, marker = styles[name]
        axes.plot(range(1, len(ious) + 1), ious, color=colour, marker=marker, markersize=5,
                  label=f"{name}: {ious[0]:.3f} to {ious[-1]:.3f}")
    axes.set(xlabel="clicks, each after the first in the thickest error", ylabel="mean IoU", title="corrective clicks")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
