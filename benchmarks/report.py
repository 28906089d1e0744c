"""The table, the JSON and the picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .measure import Row, late

COLOURS = {"ours": "#0f766e", "peer": "#c9ced6", "floor": "#8b95a5"}
INK, MISSED = "#1f2937", "#b4232c"


def line(row: Row, *, judged: bool = True) -> str:
    """One row as text; `judged`: with what became of its goal."""
    goal = ""
    if row.goal is not None:
        verdict = "ok" if row.reached else "not reached (stretch)" if row.stretch else "MISSED"
        goal = f"{'>=' if row.at_least else '<='} {row.goal:g}".ljust(10) + (verdict if judged else "")
    value = f"{row.value:,.2f} {row.unit}".rstrip()
    return f"{row.group:<9}{row.what:<64}{value:>16}  {goal}".rstrip()


def machine() -> dict[str, Any]:
    """What the figures come from."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processors": os.cpu_count(),
    }


def write_json(rows: Iterable[Row], path: Path) -> None:
    """All rows with the machine they come from."""
    data = {"machine": machine(), "rows": [{**vars(row), "reached": row.reached} for row in rows]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def write_plot(rows: list[Row], path: Path) -> bool:
    """One panel for each set of comparable rows; False without matplotlib or without such rows."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.panel:
            panels.setdefault(row.panel, []).append(row)
    pyplot = _pyplot()
    if pyplot is None or not panels:
        return False
    columns = 2 if len(panels) > 1 else 1
    sides: list[list[str]] = [[] for _ in range(columns)]
    for title in panels:  # each panel goes to the shorter column
        min(sides, key=lambda side: sum(len(panels[each]) + 3 for each in side)).append(title)
    heights = [[len(panels[title]) + 1.5 for title in side] for side in sides]
    figure = pyplot.figure(figsize=(8.5 * columns, 0.36 * max(sum(each) + 0.9 * len(each) for each in heights) + 1.3))
    for column, (side, height) in enumerate(zip(sides, heights, strict=True)):
        if not side:
            continue
        grid = figure.add_gridspec(
            len(side), 1, height_ratios=height, left=(column + 0.36) / columns, right=(column + 0.95) / columns,
            top=1 - 1.15 / figure.get_figheight(), bottom=0.35 / figure.get_figheight(), hspace=0.3,
        )  # fmt: skip
        for place, title in enumerate(side):
            _draw(figure.add_subplot(grid[place]), title, panels[title])
    _head(figure, "What resilience-toolkit costs", (
        "Each panel is one run, all taking turns, best rounds. Scales are logarithmic. Teal: ours, red where its goal "
        "(black mark) is missed; grey: the peers.",
    ))  # fmt: skip
    figure.savefig(path, dpi=110, facecolor="white")
    pyplot.close(figure)
    return True


def write_spread(rows: list[Row], path: Path) -> bool:
    """A curve for each row with samples: the share of them within so much time; False without matplotlib or rows."""
    told = sorted((row for row in rows if row.samples), key=lambda row: row.value)
    pyplot = _pyplot()
    if pyplot is None or not told:
        return False
    figure = pyplot.figure(figsize=(11, 4.8))
    axes = figure.add_axes((0.07, 0.13, 0.56, 0.62))
    shades = {"ours": iter(("#0f766e", "#2563eb", "#b45309", "#7c3aed")), "peer": iter(("#8b95a5", "#b9bfca"))}
    for row in told:
        count = len(row.samples)
        shares = [(place + 1) / count * 100 for place in range(count)]
        text = f"{row.label}: p50 {row.value:,.1f} {row.unit}, p99 {late(row.samples):,.1f} {row.unit}"
        axes.step(row.samples, shares, where="post", color=next(shades[row.who], INK), linewidth=2.2, label=text,
                  linestyle="-" if row.who == "ours" else "--")  # fmt: skip
        if row.goal is not None:
            axes.plot([row.goal], [50], marker="|", color="black", markersize=16, markeredgewidth=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(0, 101)
    axes.set_xlabel(f"{told[0].unit} after the call that opened the breaker has begun", fontsize=9.5, color=INK)
    axes.set_ylabel("% of the processes that refuse", fontsize=9.5, color=INK)
    axes.grid(alpha=0.25)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=9.5, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    _head(figure, "How long an opening takes to reach 8 other processes", (
        "All of them and the one that opens the breaker share these processors. Black mark: the goal for half of them.",
        "pybreaker asks the server at every call, here all the time; interlock asks once a second.",
    ))  # fmt: skip
    figure.savefig(path, dpi=110, facecolor="white")
    pyplot.close(figure)
    return True


def _pyplot() -> Any:
    """The drawing library, None where it is not installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    return pyplot


def _head(figure: Any, title: str, legend: Iterable[str]) -> None:
    about = machine()
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.32 / height, title, fontsize=17, fontweight="bold", color=INK, va="center")
    for place, text in enumerate((f"CPython {about['python']}, {about['processors']} processors.", *legend)):
        figure.text(0.02, 1 - (0.62 + 0.2 * place) / height, text, fontsize=9, color="#4b5563", va="center")


def _draw(axes: Any, title: str, rows: list[Row]) -> None:
    """Bars from the best to the worst, with the figure at the end of each and the goal as a mark."""
    most_is_best = "/s)" in title
    rows = sorted(rows, key=lambda row: -row.value if most_is_best else row.value)
    values = [row.value for row in rows]
    colours = [MISSED if row.reached is False else COLOURS[row.who] for row in rows]
    places = range(len(rows))
    left = min(values) * 0.6
    axes.barh(places, [value - left for value in values], left=left, color=colours, height=0.72)
    for place, row in zip(places, rows, strict=True):
        text = f"{row.value:,.0f}" if row.value >= 100 else f"{row.value:.3g}"
        axes.text(max(row.value, row.goal or 0.0) * 1.04, place, text, va="center", fontsize=9, color=INK)
        if row.goal:
            axes.plot([row.goal, row.goal], [place - 0.42, place + 0.42], color="black", linewidth=2)
    axes.set_xscale("log")
    most = max(*values, *(row.goal or 0.0 for row in rows))
    axes.set_xlim(left, most * (most / left) ** 0.12)
    axes.set_yticks(list(places), [row.label for row in rows], fontsize=9.5)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(INK if row.who == "ours" else "#4b5563")
        label.set_fontweight("bold" if row.who == "ours" else "normal")
    axes.invert_yaxis()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.xaxis.set_visible(False)
    axes.tick_params(left=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
