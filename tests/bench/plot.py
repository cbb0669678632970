#!/usr/bin/env python3
"""Draws a chart for each result in a folder: plot.py RESULTS. Needs matplotlib (peers/charts.sh).

Ratios over the peer as bars with their spread and the goal; K1 as seconds over new tokens, K4 as
tokens per second over the sequences, K8 as the share of its speed that each side keeps."""
import json
import pathlib
import re
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402: the backend is chosen first

import report_math  # noqa: E402

OURS, THEIRS, GOAL = "#1b6ca8", "#b0b0b0", "#c0392b"


def finish(figure, result, path):
    figure.suptitle(f"{result['id']}: {result['title']}", fontsize=11)
    machine = result["machine"]
    figure.text(0.5, 0.005, f"{machine['cpu']}, {machine['kernels']}, {result['threads']} threads, "
                f"{result['rounds']} rounds", ha="center", fontsize=7)
    figure.tight_layout(rect=(0, 0.03, 1, 0.98))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def ratio_chart(result, path):
    """A bar per row that has a peer: the median ratio, its spread, its goal."""
    rows = [row for row in result["rows"] if row["ours"] and row["theirs"]]
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.35 * len(rows)))
    for place, row in enumerate(rows):
        found = report_math.ratios(row)
        middle = statistics.median(found)
        axes.barh(place, middle, color=OURS, xerr=[[middle - min(found)], [max(found) - middle]],
                  capsize=2)
        axes.text(max(*found, row.get("goal") or 0), place, f"  {report_math.number(middle)}x",
                  va="center", fontsize=8)
        if row.get("goal") is not None:
            axes.plot([row["goal"]] * 2, [place - 0.4, place + 0.4], color=GOAL)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(right=1.1 * axes.get_xlim()[1])  # room for the numbers
    axes.set_yticks(range(len(rows)), [f"{row['model']}: {row['work']}" for row in rows],
                    fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"times better than {rows[0]['peer']} (red: the goal)")
    finish(figure, result, path)
    return True


def _panels(models):
    figure, axes = plt.subplots(1, len(models), figsize=(5.5 * len(models), 4.2), squeeze=False)
    return figure, dict(zip(models, axes[0]))


def cache_chart(result, path):
    """K1: seconds over new tokens, a line per program and cache, a panel per model."""
    cells = result["cells"]
    figure, panels = _panels(list(dict.fromkeys(cell["model"] for cell in cells)))
    lines = {}
    for cell in cells:
        key = (cell["model"], cell["program"], cell["cache"])
        lines.setdefault(key, []).append((cell["new_tokens"], cell["seconds"]))
    for (model, program, cache), points in lines.items():
        points.sort()
        panels[model].errorbar(
            [tokens for tokens, _ in points], [report_math.mean(s) for _, s in points],
            yerr=[report_math.deviation(s) for _, s in points], label=f"{program}, {cache}",
            marker="o", linestyle="-" if program == "kvist" else "--", capsize=2)
    for model, axes in panels.items():
        axes.set(title=model, xscale="log", yscale="log", xlabel="new tokens", ylabel="seconds")
        axes.legend(fontsize=7)
    finish(figure, result, path)


def batch_chart(result, path):
    """K4: tokens per second over the number of sequences, both sides, a panel per model."""
    figure, panels = _panels(list(dict.fromkeys(row["model"] for row in result["rows"])))
    for model, axes in panels.items():
        rows = [row for row in result["rows"] if row["model"] == model]
        for side, name, color in (("ours", "Kvist", OURS), ("theirs", "llama.cpp", THEIRS)):
            points = [(int(re.match(r"\d+", row["work"])[0]), statistics.median(row[side]))
                      for row in rows if row[side]]
            axes.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=name,
                      color=color)
        axes.set(title=model, xlabel="sequences", ylabel="tokens per second, all together")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.legend(fontsize=8)
    finish(figure, result, path)


def kept_chart(result, path):
    """K8: the share of its speed that each side keeps, and what it would if it lost no more than
    its share of the cores."""
    kept = ", share kept"
    rows = [row for row in result["rows"] if row["work"].endswith(kept)]
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.5 * len(rows)))
    for side, name, color, shift in (("ours", "Kvist", OURS, -0.2),
                                     ("theirs", "llama.cpp", THEIRS, 0.2)):
        measured = [(place, row[side]) for place, row in enumerate(rows) if row[side]]
        middles = [statistics.median(values) for _, values in measured]
        spread = [[middle - min(values) for middle, (_, values) in zip(middles, measured)],
                  [max(values) - middle for middle, (_, values) in zip(middles, measured)]]
        axes.barh([place + shift for place, _ in measured], middles, height=0.4, color=color,
                  label=name, xerr=spread, capsize=2)
    axes.axvline(rows[0]["goal_ours"], color=GOAL, label="its share of the cores")
    axes.set_yticks(range(len(rows)),
                    [f"{row['model']}: {row['work'].removesuffix(kept)}" for row in rows],
                    fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="share of its speed alone")
    axes.legend(fontsize=8, loc="lower right")
    finish(figure, result, path)


def main():
    folder = pathlib.Path(sys.argv[1])
    for source in sorted(folder.glob("K*.json")):
        result = json.loads(source.read_text())
        path = source.with_suffix(".png")
        if result.get("cells"):
            cache_chart(result, path)
        elif result["id"] == "K4" and result["rows"]:
            batch_chart(result, path)
        elif result["id"] == "K8" and result["rows"]:
            kept_chart(result, path)
        elif not ratio_chart(result, path):
            print(f"{source.name}: no row has a peer, no chart", file=sys.stderr)
            continue
        print(path)


if __name__ == "__main__":
    main()
