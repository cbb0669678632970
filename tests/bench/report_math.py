"""What the report computes and how it writes it down: no programs are run here.

A row is a dictionary: model, work, unit, better ("higher" or "lower"), peer, ours and theirs (a
number per round, theirs empty without a peer), and where there is one: goal (of the ratio),
goal_ours (of our own median) and share ({"of": what, "ours": [...], "goal": g or None}).
"""
import statistics


def ratios(row):
    """How many times better than the peer, round by round: above 1 is better for us."""
    pairs = zip(row["ours"], row["theirs"])
    if row["better"] == "lower":
        return [theirs / ours for ours, theirs in pairs]
    return [ours / theirs for ours, theirs in pairs]


def _reached(value, goal, better):
    return value <= goal if better == "lower" else value >= goal


def verdict(row):
    """"reached", "missed", or "" where there is no goal or nothing to compare with."""
    checks = []
    if row.get("goal") is not None:
        if not row["theirs"] or not row["ours"]:
            return ""
        checks.append(statistics.median(ratios(row)) >= row["goal"])
    if row.get("goal_ours") is not None and row["ours"]:
        checks.append(_reached(statistics.median(row["ours"]), row["goal_ours"], row["better"]))
    share = row.get("share")
    if share and share.get("goal") is not None and share["ours"]:
        checks.append(statistics.median(share["ours"]) >= share["goal"])
    if not checks:
        return ""
    return "reached" if all(checks) else "missed"


def number(value):
    """Four digits at most, no exponent: 12345 -> 12345, 123.4 -> 123.4, 0.01234 -> 0.0123."""
    if value == 0:
        return "0"
    size = abs(value)
    digits = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 4
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _median(values):
    return number(statistics.median(values)) if values else ""


def _goal_text(row):
    parts = []
    if row.get("goal") is not None:
        parts.append(f"{number(row['goal'])}x")
    if row.get("goal_ours") is not None:
        sign = "up to" if row["better"] == "lower" else "at least"
        parts.append(f"{sign} {number(row['goal_ours'])} {row['unit']}")
    if (row.get("share") or {}).get("goal") is not None:
        parts.append(f"{100 * row['share']['goal']:.0f} % of the {row['share']['of']}")
    return ", ".join(parts)


def table_line(row):
    """The row as a line of TABLE_HEAD's table."""
    found = ratios(row)
    ratio = _median(found)
    spread = f"{number(min(found))} to {number(max(found))}" if found else ""
    share = row.get("share")
    share_text = ""
    if share and share["ours"]:
        share_text = f"{100 * statistics.median(share['ours']):.0f} % of the {share['of']}"
    cells = [row["model"], row["work"], row["unit"], _median(row["ours"]), _median(row["theirs"]),
             row["peer"], ratio, spread, share_text, _goal_text(row), verdict(row)]
    return "| " + " | ".join(cells) + " |"


TABLE_HEAD = (
    "| model | work | unit | Kvist | peer | which | ratio | least to greatest | share of the limit "
    "| goal | |\n| " + " | ".join(["---"] * 11) + " |")


def machine_line(machine, threads):
    """What every report begins with; `machine` is what `kvist doctor --output json` prints."""
    limit = machine["limit"]
    return (f"{machine['cpu']}, {machine['kernels']} kernels, {threads} threads; memory "
            f"{limit['memory_bandwidth_bytes_per_second'] / 1e9:.1f} GB/s read, int8 peak "
            f"{limit['int8_macs_per_second'] / 1e9:.0f} G multiply-adds/s, both measured in the "
            f"same run; load before {machine['cores']['load']:.1f}.")


def report(results, charts=()):
    """The whole of REPORT.md, from the results in their order; `charts` has the ids that are
    drawn."""
    lines = ["# Benchmarks", ""]
    if results:
        first = results[0]
        lines += [machine_line(first["machine"], first["threads"]), ""]
    lines += ["Ratios say how many times better Kvist is than the peer in the same round, medians "
              "with the least and the greatest; both sides take turns on the same machine, model "
              "file and threads. A warm-up round is not counted.", ""]
    for result in results:
        lines += [f"## {result['id']}: {result['title']}", ""]
        lines += [f"{result['rounds']} rounds, {result['date']}. "
                  + machine_line(result["machine"], result["threads"]), ""]
        lines += [TABLE_HEAD] + [table_line(row) for row in result["rows"]] + [""]
        if result.get("cells"):
            lines += cell_table(result["cells"]) + [""]
        lines += [f"- {name}: `{value}`" for name, value in result.get("flags", {}).items()]
        lines += [f"- not measured: {error}" for error in result.get("errors", [])]
        if result["id"] in charts:
            lines += [f"\n![{result['title']}]({result['id']}.png)", ""]
        lines.append("")
    return "\n".join(lines)


def cell_table(cells):
    """K1's table: a line per program, cache and number of new tokens."""
    lines = ["", "| model | program | cache | new tokens | mean s | deviation s | KV bytes | "
             "peak bytes | runs |", "| " + " | ".join(["---"] * 9) + " |"]
    for cell in cells:
        mark = " (over the time limit: fewer)" if cell["fewer_runs"] else ""
        lines.append("| " + " | ".join([
            cell["model"], cell["program"], cell["cache"], str(cell["new_tokens"]),
            number(mean(cell["seconds"])), number(deviation(cell["seconds"])),
            str(cell.get("kv_bytes", "")), str(cell.get("peak_bytes", "")),
            f"{len(cell['seconds'])}{mark}"]) + " |")
    return lines


def mean(values):
    return statistics.fmean(values)


def deviation(values):
    """Of the sample; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def alternate(ours, theirs, rounds, warm_up=True):
    """Runs both sides in turns, and who begins alternates too. Each returns a dictionary of
    numbers. Returns (numbers by name of ours, of theirs, the error that ended the peer's turns or
    None)."""
    collected = ({}, {})
    error = None
    for turn in range(-1 if warm_up else 0, rounds):
        for side in ((0, 1) if turn % 2 == 0 else (1, 0)):
            if side == 1 and (theirs is None or error is not None):
                continue
            try:
                values = (ours, theirs)[side]()
            except (OSError, ValueError, KeyError, RuntimeError, StopIteration) as problem:
                if side == 0:
                    raise
                error = f"the peer failed: {problem}"
                continue
            if turn < 0:
                continue
            for name, value in values.items():
                collected[side].setdefault(name, []).append(value)
    return collected[0], collected[1], error


def metric_sum(text, name, **labels):
    """The sum of a Prometheus metric over the series that have these labels."""
    total = 0.0
    for line in text.splitlines():
        if not line.startswith((name + "{", name + " ")):
            continue
        if all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total
