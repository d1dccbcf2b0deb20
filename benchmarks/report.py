"""Turns samples into medians, a table for people and a record for later comparison."""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.chapter import Metric, Sample
from benchmarks.chapters import METRICS
from benchmarks.machine_chapter import MICRO

MEAN_TARGET = 0.95
_ROOT = Path(__file__).parent.parent


def medians(samples: list[Sample]) -> Sample:
    """Return the median of each figure that was measured."""
    measured = [metric.name for metric in METRICS if metric.name in samples[0]]
    return {name: statistics.median(sample[name] for sample in samples) for name in measured}


def mean_ratio(first: Sample, second: Sample) -> float | None:
    """Return the geometric mean of the micro-benchmarks' ratios, None where they were not measured."""
    if f"micro.{MICRO[0]}" not in first:
        return None
    logs = [math.log(first[f"micro.{name}"] / second[f"micro.{name}"]) for name in MICRO]
    return math.exp(sum(logs) / len(logs))


def _verdict(value: float, target: float, more_is_better: bool) -> str:
    return "ok" if (value >= target if more_is_better else value <= target) else "MISSED"


def _judged(metric: Metric, value: float, ratio: float) -> tuple[str, str]:
    sign = ">=" if metric.more_is_better else "<="
    if metric.relative is not None:
        return f"{sign} {metric.relative:g} x", _verdict(ratio, metric.relative, metric.more_is_better)
    assert metric.absolute is not None
    return f"{sign} {metric.absolute:g} {metric.unit}", _verdict(value, metric.absolute, metric.more_is_better)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(names: tuple[str, str], first: Sample, second: Sample) -> str:
    """Return the comparison as a Markdown table."""
    rows: list[tuple[str, ...]] = [("", "unit", *names, "ratio", "target", "")]
    for metric in (metric for metric in METRICS if metric.name in first):
        value = first[metric.name] * metric.scale
        if metric.name not in second:  # it cannot do that
            rows.append((metric.title, metric.unit, _figure(value), "-", "-", *_judged(metric, value, math.nan)))
            continue
        other = second[metric.name] * metric.scale
        ratio = value / other if other else math.inf
        figures = _figure(value), _figure(other), f"{ratio:.2f}"
        rows.append((metric.title, metric.unit, *figures, *_judged(metric, value, ratio)))
    if (mean := mean_ratio(first, second)) is not None:
        title = f"geometric mean of the {len(MICRO)} guest benchmarks"
        rows.append((title, "", "", "", f"{mean:.2f}", f"<= {MEAN_TARGET:g} x", _verdict(mean, MEAN_TARGET, False)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def revision() -> str:
    """Return the git revision of the tree, with "-dirty" where it differs from that."""
    head = _git("rev-parse", "--short=12", "HEAD") or "none"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "pyvm", "images", "benchmarks")
    return f"{head}-dirty" if changed else head


def host() -> dict[str, Any]:
    """Return what the figures depend on beside the emulators."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": model,
        "cpus": len([line for line in lines if line.startswith("processor")]),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
