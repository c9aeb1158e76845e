"""What gpu_run.py makes of its steps: figures out of files and printed lines, goals, summary.md."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpu_parts import Step

# ---- figures of a step --------------------------------------------------------------------------------------

def read_figures(step: Step, output: str) -> list[dict[str, Any]] | dict[str, Any]:
    """What a step measured, even one that did not come to its end; empty if there is nothing."""
    if step.figures is None:
        return memory_rows(output)
    if not step.figures.is_file():
        return {}
    text = step.figures.read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines())) if step.figures.suffix == ".csv" else json.loads(text)


def memory_rows(output: str) -> list[dict[str, Any]]:
    """The rows of bench_memory.py's table."""
    rows = re.findall(r"^\| (.+?) \| (?:([\d.]+) \| ([\d.]+) GB|\| (.+)) \|$", output, re.MULTILINE)
    return [{"flags": flags, "problem": problem} if problem else
            {"flags": flags, "seconds": float(seconds), "peak_gb": float(peak)}
            for flags, seconds, peak, problem in rows]


# ---- goals --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Goal:
    """`measure` takes the figures of all steps by name; it raises KeyError or ValueError where they are not there."""

    text: str
    measure: Callable[[Mapping[str, Any]], float]
    met: Callable[[float], bool]
    shown: str


def against(figures: Mapping[str, Any], precision: str) -> dict[str, float]:
    """Stock over ours, ViT-B at 1024 px: `speedup` and `memory`."""
    return figures["train 1024 px"]["ratios"][f"reference {precision}"]


GOALS = (
    Goal("parity: quantities out of bounds", lambda f: sum(not row["ok"] for row in f["parity"]["rows"]),
         lambda value: value == 0, "{:.0f}"),
    Goal("ViT-B 1024 px, batch 8: at least 4x stock float32's images/s",
         lambda f: against(f, "fp32")["speedup"], lambda value: value >= 4, "{:.2f}x"),
    Goal("at least 2x stock bf16's images/s", lambda f: against(f, "bf16")["speedup"], lambda value: value >= 2,
         "{:.2f}x"),
    Goal("at most a quarter of stock bf16's memory", lambda f: 1 / against(f, "bf16")["memory"],
         lambda value: value <= 0.25, "{:.2f}"),
    Goal("at least 40 % of the card's matrix rate",
         lambda f: f["train 1024 px"]["sides"]["ours"]["share_of_matrix_rate"] * 100, lambda value: value >= 40,
         "{:.0f} %"),
    Goal("ViT-H, batch 4: under 40 GB",
         lambda f: next(row["peak_gb"] for row in f["memory vit_h"] if row["flags"] == "none"),
         lambda value: value < 40, "{:.1f} GB"),
    Goal("train.py, ViT-B 1024 px: waiting for data under 3 %", lambda f: f["train.py"]["large"]["data_wait"] * 100,
         lambda value: value < 3, "{:.1f} %"),
    Goal("inference, ViT-B: at least 3x a SamPredictor loop", lambda f: f["inference"]["speedup"],
         lambda value: value >= 3, "{:.2f}x"),
)


def goal_rows(results: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(goal, measured, met) of every goal; a dash where nothing was measured, or by a quick run."""
    quick = results["run"]["quick"]
    figures = {name: step.get("figures") for part in results["parts"].values() for name, step in part["steps"].items()}
    rows = []
    for goal in GOALS:
        try:
            value = goal.measure(figures)
        except (KeyError, TypeError, StopIteration, ZeroDivisionError):
            rows.append((goal.text, "-", "-"))
            continue
        rows.append((goal.text, goal.shown.format(value), "-" if quick else "yes" if goal.met(value) else "**no**"))
    return rows


# ---- summary.md ---------------------------------------------------------------------------------------------

def summary(results: Mapping[str, Any]) -> str:
    """All tables, ready for RESULTS.md."""
    return "\n".join([*head(results["run"]), *goals(results), *states(results),
                      *(line for letter, part in results["parts"].items() for line in part_lines(letter, part))]) + "\n"


def final_lines(results: Mapping[str, Any]) -> list[str]:
    """What ends the output of a run."""
    lines = ["", *head(results["run"])[2:], *goals(results), *states(results)]
    return [line for line in lines if line]


def head(run: Mapping[str, Any]) -> list[str]:
    quick = ["", "**A quick run: it shows that the parts work; its figures mean nothing.**"] if run["quick"] else []
    return ["## On a GPU" if run["device"] == "cuda" else "## gpu_run.sh on a CPU", "",
            f"{run['date']}, {run['card'] if run['device'] == 'cuda' else 'CPU'}, driver {run['driver'] or '-'}, torch "
            f"{run['torch']}, Python {run['python']}, {run['cores']} cores: `bash benchmarks/gpu_run.sh`.", *quick]


def goals(results: Mapping[str, Any]) -> list[str]:
    return ["", *table(("goal", "measured", "met"), goal_rows(results))]


def states(results: Mapping[str, Any]) -> list[str]:
    rows = [(letter, name, step["state"], f"{step['seconds']:.0f} of {step['limit']}" if "seconds" in step else "-")
            for letter, part in results["parts"].items() for name, step in part["steps"].items()]
    return ["", *table(("part", "step", "state", "seconds"), rows)]


def part_lines(letter: str, part: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {letter}. {part['title']}")
    for name, step in part["steps"].items():
        yield from ("", f"{name}: `{step['command']}`" + ("" if step["state"] == "done" else f" - **{step['state']}**"))
        if step.get("figures"):
            yield from ("", *TABLES.get(name.split()[0], other_table)(step["figures"]))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (list(header), *cells)][:1] + ["|" + "---|" * len(header)] + \
        ["| " + " | ".join(row) + " |" for row in cells]


def parity_table(figures: Mapping[str, Any]) -> list[str]:
    """One row for each quantity of gpu_parity.py."""
    rows = [(row["case"], row["quantity"], f"{row['fp32']:.1e}", f"{row['fp32_allowed']:.0e}", f"{row['bf16']:.1e}",
             f"{row['stock_bf16']:.1e}", f"{row['bf16'] / row['stock_bf16']:.2f}" if row["stock_bf16"] else "-",
             "yes" if row["ok"] else "**no**") for row in figures["rows"]]
    return table(("model, px", "quantity", "ours float32", "allowed", "ours bf16", "stock bf16", "ours/stock", "ok"),
                 rows)


def speed_table(figures: Mapping[str, Any]) -> list[str]:
    rates, rows = figures["matrix_rates"], []
    for key, side in figures["sides"].items():
        ratio = figures["ratios"].get(key)
        name = key if side["precision"] in key else f"{key} {side['precision']}"
        if side["problem"]:
            rows.append((name, side["problem"], *[""] * 5))
            continue
        rows.append((name, f"{side['images_per_s']:.2f}", f"{ratio['speedup']:.2f}x" if ratio else "",
                     f"{side['peak_bytes'] / 1e9:.1f} GB", f"{ratio['memory']:.2f}x" if ratio else "",
                     f"{side['flops_per_s'] / 1e12:.1f} of {rates[side['precision']] / 1e12:.0f} "
                     f"({side['share_of_matrix_rate']:.0%})",
                     ", ".join(f"{part} {seconds * 1e3:.1f}" for part, seconds in side["parts"].items())))
    return table(("side", "images/s", "ours is faster by", "peak memory", "ours takes less by",
                  "TFLOP/s of a large product's", "ms a step, waiting after each part"), rows)


def attention_table(figures: Mapping[str, Any]) -> list[str]:
    rows = [(f"{row['model_type']} {row['kind']}", row["way"],
             *("" if row[name] is None else f"{row[name] * 1e3:.2f}" for name in ("seconds", "forward_seconds")),
             *("" if row[name] is None else f"{row[name]:,.{digits}f}"
               for name, digits in (("tflops", 1), ("peak_mb", 0))),
             "" if row["error"] is None else f"{row['error']:.1e}", row["problem"]) for row in figures["results"]]
    lines = table(("blocks", "way", "ms forward + backward", "ms forward", "TFLOP/s", "MB", "error", "problem"), rows)
    return [*lines, "", "Fastest: " + ", ".join(f"{case} {way}" for case, way in figures["fastest"].items()) + "."]


def memory_table(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    return table(("flags", "s a step", "peak memory"),
                 [(row["flags"], "", row["problem"]) if "problem" in row else
                  (row["flags"], f"{row['seconds']:.2f}", f"{row['peak_gb']:.2f} GB") for row in figures])


def train_table(figures: Mapping[str, Any]) -> list[str]:
    """One row for each figure of gpu_train.py."""
    rows = [(f"{run}: {name.replace('_', ' ')}", number(value)) for run, values in figures.items()
            for name, value in values.items()]
    return table(("figure", "value"), rows)


def inference_table(figures: Mapping[str, Any]) -> list[str]:
    rows = [(row["title"], row["rows"], *(number(row[name]) for name in ("ours_rows_per_s", "loop_rows_per_s")),
             f"{row['ratio']:.2f}x", f"{row['pixels_agree']:.2%}") for row in figures["comparisons"]]
    lines = table(("comparison", "rows", "ours, rows/s", "SamPredictor loop, rows/s", "ratio", "pixels that agree"),
                  rows)
    if parity := figures.get("precision_parity"):
        lines += ["", "vit_mini, both precisions: " + ", ".join(f"{name} {number(value)}"
                                                                for name, value in parity.items())]
    return lines


def other_table(figures: Any) -> list[str]:
    """Any list of alike mappings, or a mapping that has one; otherwise its values by name."""
    lists = [figures] if isinstance(figures, list) else [
        value for value in figures.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if not lists:
        return table(("figure", "value"), [(name, number(value)) for name, value in figures.items()])
    lines = []
    for rows in lists:
        names = list(dict.fromkeys(name for row in rows for name in row))
        lines += ["", *table(names, [[number(row.get(name, "")) for name in names] for row in rows])]
    return lines[1:]


def number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


TABLES = {"parity": parity_table, "train": speed_table, "attention": attention_table, "memory": memory_table,
          "train.py": train_table, "inference": inference_table}
