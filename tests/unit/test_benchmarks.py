"""The benchmark report: medians, ratios, verdicts.  Nothing is booted."""

from __future__ import annotations

import pytest

from benchmarks import report
from benchmarks.measures import METRICS, Sample


def sample(**figures: float) -> Sample:
    return {metric.name: 1.0 for metric in METRICS} | figures


def row(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if f"| {title}" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_figure_has_its_own_median() -> None:
    samples = [sample(boot=3, idle=0.1), sample(boot=1, idle=0.3), sample(boot=2, idle=0.2)]
    medians = report.medians(samples)
    assert medians["boot"] == 2
    assert medians["idle"] == 0.2


def test_the_mean_is_geometric_and_of_the_guest_benchmarks_only() -> None:
    first = sample(boot=100, **{"micro.integer": 4.0, "micro.pipe": 0.25, "micro.fork": 512.0})
    assert report.mean_ratio(first, sample()) == pytest.approx(512 ** (1 / 9))


@pytest.mark.parametrize(
    ("figure", "value", "title", "verdict"),
    [
        ("boot", 0.99, "boot to", "ok"),
        ("boot", 1.01, "boot to", "MISSED"),
        ("pings", 0.5, "agent round trips", "ok"),
        ("pings", 0.49, "agent round trips", "MISSED"),
        ("greeting", 0.2, "start of -S", "ok"),
        ("greeting", 0.21, "start of -S", "MISSED"),
        ("idle", 0.029, "processor use", "ok"),
        ("idle", 0.031, "processor use", "MISSED"),
    ],
)
def test_targets_are_judged(figure: str, value: float, title: str, verdict: str) -> None:
    text = report.table(("pyvm", "QEMU"), sample(**{figure: value}), sample())
    assert row(text, title)[-1] == verdict


def test_figures_are_shown_in_their_units() -> None:
    text = report.table(("pyvm", "QEMU"), sample(resident=200 * 2**20), sample(resident=250 * 2**20))
    assert row(text, "resident memory")[1:5] == ["MiB", "200", "250", "0.80"]


def test_the_table_is_markdown() -> None:
    lines = report.table(("pyvm", "QEMU"), sample(), sample()).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) == {"|", "-"}
