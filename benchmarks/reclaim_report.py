"""The matrix of `python -m benchmarks reclaim` as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IN_TIME = 1.5  # seconds: the deadline, and room for a busy machine


def words(cell: Any) -> str:
    """One cell as text."""
    if not cell.started:
        return "no start"
    if cell.died:
        return "DIED"
    if cell.back is None:
        return "never"
    return f"{cell.back:.2f} {'L' if cell.stuck else 'F'}{'s' if cell.left else ''} {'x' if cell.exits else 'X'}"


def verdicts(cell: Any) -> tuple[bool, bool, bool, bool]:
    """Caller back in time; and the call ended; and nothing left behind; and the script exits."""
    back = cell.back is not None and cell.back <= IN_TIME
    freed = back and not cell.stuck
    return back, freed, freed and not cell.left, back and bool(cell.exits)


TOTALS = ("caller back in time", "and the call has ended", "and nothing is left", "the script exits")


def table(cells: list[Any], kinds: list[str], tools: list[str], skipped: dict[str, str]) -> str:
    """Markdown."""
    found = {(cell.kind, cell.tool): cell for cell in cells}
    lines = ["| " + " | ".join(["kind", *tools]) + " |", "|---" * (len(tools) + 1) + "|"]
    for kind in kinds:
        row = [words(found[kind, tool]) if (kind, tool) in found else "skipped" for tool in tools]
        lines.append("| " + " | ".join([kind, *row]) + " |")
    for number, what in enumerate(TOTALS):
        row = []
        for tool in tools:
            mine = [verdicts(cell)[number] for cell in cells if cell.tool == tool]
            row.append(f"**{sum(mine)}/{len(mine)}**")
        lines.append("| " + " | ".join([f"**{what}**", *row]) + " |")
    lines += [f"\n{kind}: skipped, {reason}" for kind, reason in skipped.items()]
    return "\n".join(lines)


COLOURS = ("#b23a2e", "#e0a458", "#e9d98b", "#4c956c")
LEGEND = ("not back in time", "caller back, call still runs or script hangs", "ended, something left", "all ended")


def grade(cell: Any) -> int:
    """0 worst, 3 best."""
    back, freed, clean, exits = verdicts(cell)
    if not back:
        return 0
    if not freed or not exits:
        return 1
    return 3 if clean else 2


def plot(cells: list[Any], kinds: list[str], tools: list[str], path: Path) -> None:
    """A coloured matrix; nothing without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import patches, pyplot
    except ImportError:
        return
    found = {(cell.kind, cell.tool): cell for cell in cells}
    figure, axes = pyplot.subplots(figsize=(1.45 * len(tools) + 1.5, 0.36 * len(kinds) + 2))
    for row, kind in enumerate(kinds):
        for column, tool in enumerate(tools):
            cell = found.get((kind, tool))
            colour = "#dddddd" if cell is None else COLOURS[grade(cell)]
            axes.add_patch(patches.Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white"))
            text = "skipped" if cell is None else words(cell)
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8)
    axes.set_xlim(0, len(tools))
    axes.set_ylim(len(kinds), 0)
    axes.set_xticks([number + 0.5 for number in range(len(tools))], tools, fontsize=8)
    axes.set_yticks([number + 0.5 for number in range(len(kinds))], kinds, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    handles = [patches.Patch(color=colour, label=label) for colour, label in zip(COLOURS, LEGEND, strict=True)]
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncol=2, fontsize=8, frameon=False)
    axes.set_title("What happens at a deadline of 1 s (the first four: this toolkit)", fontsize=10, pad=24)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
