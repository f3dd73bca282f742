"""Tables and figures from the runs that there are."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import worlds
from judging import BASELINES, CLEAN, DETECTORS, RELIANT, judge, load
from plan import TIERS, reported
from scipy.stats import binomtest, rankdata, spearmanr
from training import CONTROLS

Row = dict[str, Any]
TITLES = {
    "S": "Tier S",
    "P": "Tier P",
    "added": "A cue and an architecture held back",
    "moved": "Maps that move while the answers hardly do",
}
MAPS = ("drop", "level")
GRADED = ("chance", "0.8", "0.95", "1")


def report(folder: Path, out: Path, half: str | None = None, detectors: Any = "default") -> list[str]:
    """Writes CSV tables, figures and RESULTS.md; returns the lines of the latter.

    Args:
        folder: Of the runs.
        out: Where RESULTS.md goes; tables and figures go into its folder ``results``.
        half: "tuning" for the even seeds of tier S; by default the odd ones, and the other tiers.
        detectors: What is judged.
    """
    tables = out / "results"
    tables.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {}
    for tier, plan in TIERS.items():
        chosen = [run for run in plan() if reported(run) == (half != "tuning")]
        done = [run for run in chosen if (folder / f"{run.key}.place").exists()]  # the last thing that a run writes
        rows[tier] = [judge(load(folder / f"{run.key}.pt"), detectors) for run in done]
    write_csv(tables / "runs.csv", [{"tier": tier, **row} for tier, found in rows.items() for row in found])
    lines = ["# Error rates of the alarms", "", *HEAD.split("\n")]
    every = [row for found in rows.values() for row in found]
    for tier, found in rows.items():
        if found:
            lines += [f"## {TITLES[tier]}", "", *section(found, tables, tier, every)]
    figures(rows["S"], tables)
    (out / "RESULTS.md").write_text("\n".join(lines) + "\n")
    return lines


HEAD = """\
All figures are of the default detectors in one configuration. Tier S: the thresholds were fixed on the even seeds in
the commit "Fix the limits of the probe on the even seeds"; what stands here is of the odd seeds from 73, which were not
trained before it. To get it again:

    python tests/benchmarks/drift run          # also with --tier P, added and moved; goes on where it stopped
    python tests/benchmarks/drift report       # of the even seeds: --half tuning --out somewhere/else

Every run stands in `results/runs.csv`, with what every detector and every baseline said of it. The truth comes
without any map: reliance is the accuracy with a cue that agrees with the label less that with one that does not, on
held-out images. A run is *clean* when that is at most .05 after every epoch, *reliant* when it is at least .20 after
the last one, and otherwise *grey*. Intervals of rates are Wilson's at 95 %; bounds of false alarms the exact one-sided
95 % ones (Clopper and Pearson); those of AUROC and Spearman percentiles of a bootstrap over runs. Baselines are taken
in the better of their two directions.

What has to be known to read them:

- Earlier versions, which the history holds, were reported on the seeds 1 to 15 and 17 to 33. Nothing here uses them. In
  the last of these, with two swaps an image and hiding to agree, detection was 91 of 96; that is why six swaps are
  asked now, against measured confusion.
- The held-back cue `stamp` and architecture `dense` were written before the limits were fixed but not run until after.
  The reliant run that is missed there is a `dense` net with a reliance of .23, whose score of .04 is below the margin.
- The last tier is of nets that know the task before a cue comes in. Their maps move and their answers hardly follow,
  and 11 of these 12 runs raise an alarm of `drop`, 7 of them clean by the measure. They were planned apart, because
  their maps do what `drop` is for; who counts them as false alarms has 7 of 101 (upper bound .126). The alarms of the
  clean runs say "map moved, behaviour unconfirmed". The label's target rests on this tier alone, with 10 alarms (.60 to
  .98); the one that says "agrees" came at a reliance of .05.
- In tier P the nets did not take up the watermark, so that only the corner tag was there to be detected. The two alarms
  of clean runs there are `dead_maps`, and true: 20 to 27 % of the maps of images answered rightly are blank.
- The nets are small, the images 48 or 64 pixels, the cues planted, and the panel shows the cue, agreeing with the
  label, in every arm but `none`. A score that could not be read (accuracy near chance) counts as 0 in the AUROC.
- `object` and `texture` have no one place and are not among the places to be named; any part of the frame counts as
  the place of `border`, which is much of the image's edge. In the last tier a place is named in every clean run: moved
  there, the tag does carry answers with it.
"""


def section(rows: list[Row], out: Path, tier: str, every: list[Row]) -> list[str]:
    clean, reliant = ([row for row in rows if row["state"] == state] for state in ("clean", "reliant"))
    grey = len(rows) - len(clean) - len(reliant)
    lines = [f"{len(rows)} runs: {len(clean)} clean, {len(reliant)} reliant, {grey} grey.", ""]
    tables = {"Targets": targets(rows, clean, reliant, every)} if tier == "S" else {}
    tables |= {
        "False alarms": false_alarms(rows),
        "Detection": detection(reliant),
        "Detection by cue and arm": by_cue(reliant),
        "Delay": delays(reliant),
        "What alarms about maps say of behaviour": labels(rows),
    }
    if tier == "S":
        tables["Score against reliance"] = scores(rows)
        tables["Annotations"] = annotations(reliant)
    tables["The cue's place"] = transplants(clean, reliant)
    for title, table in tables.items():
        name = title.lower().replace(" ", "_").replace("'", "")
        write_csv(out / f"{tier}_{name}.csv", table)
        lines += [f"### {title}", "", *markdown(table), ""]
    return lines


def targets(rows: list[Row], clean: list[Row], reliant: list[Row], every: list[Row]) -> list[Row]:
    """What was aimed at, what was measured, and whether that meets it; labels are of all tiers."""

    def row(target: str, value: float, met: bool, n: int) -> Row:
        return {"target": target, "measured": value, "n": n, "met": "not measured" if not n else "yes" if met else "no"}

    bound = false_alarms(rows)[0]["upper bound"]
    found = detection(reliant)
    local = next((r for r in found if r["runs"].startswith("localized, rho >=")), {"rate": math.nan, "n": 0})
    median = next((r for r in delays(reliant) if r["what"] == "median delay, all arms"), {"value": math.nan, "n": 0})
    said = labels(every)[0]
    marks = {r["what"]: r for r in scores(rows)} or {"score": {"AUROC": math.nan, "Spearman": math.nan, "n": 0}}
    others = {name: r for name, r in marks.items() if name not in ("score", "outside-only accuracy")}
    best = max((r["AUROC"] for r in others.values()), default=math.nan)
    outside = marks.get("outside-only accuracy", {"Spearman": math.nan})["Spearman"]
    kinds = {r["annotations"]: r["rate"] for r in annotations(reliant)}
    fall = max((kinds["true"] - v for v in kinds.values()), default=math.nan)
    spoilt = annotations(reliant)[0]["n"] if kinds else 0
    named, silent = transplants(clean, reliant)[:2]
    score, n = marks["score"], marks["score"]["n"]
    return [
        row("false alarms: exact upper bound at most .05", bound, bound <= 0.05, len(clean)),
        row("detection, localized cues, rho >= .95: at least .95", local["rate"], local["rate"] >= 0.95, local["n"]),
        row("median delay: at most 1 snapshot", median["value"], median["value"] <= 1, median["n"]),
        row("'unconfirmed' where not reliant: at least .90", said["rate"], said["rate"] >= 0.9, said["n"]),
        row("AUROC of the score: at least .95", score["AUROC"], score["AUROC"] >= 0.95, n),
        row("AUROC less the best baseline but outside-only: above 0", score["AUROC"] - best, score["AUROC"] > best, n),
        row("Spearman less that of outside-only: above 0", score["Spearman"] - outside, score["Spearman"] > outside, n),
        row("detection lost by bad annotations: at most .10", fall, fall <= 0.1, spoilt),
        row("the cue's place named: at least .90", named["rate"], named["rate"] >= 0.9, named["n"]),
        row("none named in clean runs: at least .95", silent["rate"], silent["rate"] >= 0.95, silent["n"]),
    ]


def false_alarms(rows: list[Row]) -> list[Row]:
    """Alarms on clean runs, with the exact one-sided 95 % upper bound (Clopper and Pearson)."""
    clean = [row for row in rows if row["state"] == "clean"]
    groups = {"all clean runs": clean}
    groups |= {f"clean, arm {arm}": [r for r in clean if r["arm"] == arm] for arm in sorted({r["arm"] for r in clean})}
    useless = [r for r in rows if r["arm"] in ("chance", "none", *CONTROLS)]
    groups |= {"cue useless or absent, clean or grey": useless}
    found = []
    for name, group in groups.items():
        k = sum(row["alarm"] is not None for row in group)
        by = ", ".join(f"{d} {c}" for d in DETECTORS if (c := sum(row[d] is not None for row in group)))
        found.append(
            {
                "runs": name,
                "n": len(group),
                "judged by the probe": sum(row["looks judged"] >= 2 for row in group),
                "mean accuracy": float(np.mean([row["validation accuracy"] for row in group])) if group else math.nan,
                "with an alarm": k,
                "upper bound": one_sided(k, len(group)),
                "by detector": by,
            }
        )
    return found


def one_sided(k: int, n: int) -> float:
    return binomtest(k, n, alternative="less").proportion_ci(0.95, "exact").high if n else math.nan


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """A rate with its Wilson interval."""
    if not hits:
        return {"n": 0, "rate": math.nan, "interval": ""}
    low, high = binomtest(sum(hits), len(hits)).proportion_ci(0.95, "wilson")
    return {"n": len(hits), "rate": sum(hits) / len(hits), "interval": f"{low:.2f} to {high:.2f}"}


def detection(reliant: list[Row]) -> list[Row]:
    """Reliant runs that are alarmed on by their end, by detector."""
    strong = [row for row in reliant if row["arm"] in ("1", "0.95", "late")]
    groups = {
        "localized, rho >= .95": [row for row in strong if row["cue"] in worlds.LOCALIZED],
        "background texture, rho >= .95": [row for row in strong if row["cue"] in worlds.SPREAD],
        "localized, rho = .8": [r for r in reliant if r["arm"] == "0.8" and r["cue"] in worlds.LOCALIZED],
        "late onset": [row for row in reliant if row["arm"] == "late"],
        "expected misses": [row for row in reliant if row["cue"] in worlds.MISSES],
    }
    found = []
    for name, group in groups.items():
        if group:
            one = {d: f"{sum(row[d] is not None for row in group)}" for d in DETECTORS[:3]}
            found.append({"runs": name, **rate([row["alarm"] is not None for row in group]), **one})
    return found


def by_cue(reliant: list[Row]) -> list[Row]:
    found = []
    for cue, arm in sorted({(row["cue"], row["arm"]) for row in reliant}):
        group = [row for row in reliant if (row["cue"], row["arm"]) == (cue, arm)]
        one = {d: f"{sum(row[d] is not None for row in group)}" for d in DETECTORS[:3]}
        found.append({"cue": cue, "arm": arm, **rate([row["alarm"] is not None for row in group]), **one})
    return found


def delays(reliant: list[Row]) -> list[Row]:
    """Snapshots from counterfactual onset to the alarm, a miss counting as infinite."""
    chosen = [r for r in reliant if r["cue"] in (*worlds.LOCALIZED, *worlds.SPREAD)]
    found = []
    for name, group in {"all arms": chosen, "late onset": [r for r in chosen if r["arm"] == "late"]}.items():
        waits = [math.inf if r["alarm"] is None else r["alarm"] - r["onset"] for r in group]
        if waits:
            share = sum(wait <= 1 for wait in waits) / len(waits)
            found.append({"what": f"median delay, {name}", "n": len(waits), "value": float(np.median(waits))})
            found.append({"what": f"share within 1 snapshot, {name}", "n": len(waits), "value": share})
    return found


def labels(rows: list[Row]) -> list[Row]:
    """How many alarms of drop and level, raised where the model is not reliant, say that behaviour is unconfirmed."""
    said = [alarm for row in rows for alarm in row["alarms"] if alarm["detector"] in MAPS]
    groups = {"at most .05": [a for a in said if a["reliance"] <= CLEAN]}
    groups["below .20"] = [a for a in said if a["reliance"] < RELIANT]
    return [
        {"reliance at the alarm": name, **rate([alarm["behaviour"] == "unconfirmed" for alarm in group])}
        for name, group in groups.items()
    ]


def auroc(values: Sequence[float], positive: Sequence[bool]) -> float:
    """The chance that a positive exceeds a negative, ties counting half."""
    ranks, truth = rankdata(values), np.asarray(positive, dtype=bool)
    p, n = truth.sum(), (~truth).sum()
    return float((ranks[truth].sum() - p * (p + 1) / 2) / (p * n)) if p and n else math.nan


def scores(rows: list[Row]) -> list[Row]:
    """The score at the end of training, and the baselines, against the truth; each in its better direction."""
    seen = [row for row in rows if row["cue"] not in worlds.MISSES]
    sure = [row for row in seen if row["state"] != "grey"]
    graded = [row for row in seen if row["arm"] in GRADED]
    if not sure or not graded:
        return []
    positive = np.array([row["state"] == "reliant" for row in sure], dtype=bool)
    truth = np.array([row["reliance"] for row in graded])
    draw = np.random.default_rng(0)
    found = []
    for name in ("score", *BASELINES):
        values = np.array([row[name] for row in sure])
        levels = np.array([row[name] for row in graded])
        values, levels = np.nan_to_num(values), np.nan_to_num(levels)
        sign = 1.0 if name in ("score", "outside-only accuracy") or auroc(values, positive) >= 0.5 else -1.0
        area, rank = auroc(sign * values, positive), float(spearmanr(sign * levels, truth).statistic)
        areas, ranks = [], []
        for _ in range(400):
            some, others = draw.integers(len(sure), size=len(sure)), draw.integers(len(graded), size=len(graded))
            areas.append(auroc(sign * values[some], positive[some]))
            ranks.append(spearmanr(sign * levels[others], truth[others]).statistic)
        low, high = np.nanpercentile(areas, [2.5, 97.5])
        low2, high2 = np.nanpercentile(ranks, [2.5, 97.5])
        found.append(
            {
                "what": name,
                "AUROC": area,
                "its interval": f"{low:.2f} to {high:.2f}",
                "n": len(sure),
                "Spearman": rank,
                "interval": f"{low2:.2f} to {high2:.2f}",
                "graded n": len(graded),
            }
        )
    return found


def annotations(reliant: list[Row]) -> list[Row]:
    """Detection on the same trained runs with annotations made worse."""
    group = [r for r in reliant if r["arm"] == "1" and r["cue"] in worlds.LOCALIZED]
    names = [k for k in group[0] if k.startswith("annotations: ")] if group else []
    found = []
    for name in names:
        hits = [row[name] for row in group if name in row]
        found.append({"annotations": name.removeprefix("annotations: "), **rate(hits)})
    return found


def transplants(clean: list[Row], reliant: list[Row]) -> list[Row]:
    placed = [row for row in reliant if row["named rightly"] is not None]
    hits = [row["named"] and row["named rightly"] for row in placed]
    found = [
        {"runs": "reliant, cue at one place: named rightly", **rate(hits)},
        {"runs": "clean: none named", **rate([not row["named"] for row in clean])},
    ]
    for cue in sorted({row["cue"] for row in placed}):
        hits = [row["named"] and row["named rightly"] for row in placed if row["cue"] == cue]
        found.append({"runs": f"reliant, {cue}: named rightly", **rate(hits)})
    return found


def figures(rows: list[Row], out: Path) -> None:
    """Draws the score against the truth, and detection by cue."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for cue in sorted({row["cue"] for row in rows}):
        group = [row for row in rows if row["cue"] == cue]
        marker = "x" if cue in worlds.MISSES else "o"
        axes[0].scatter([r["reliance"] for r in group], [r["score"] for r in group], s=16, marker=marker, label=cue)
    axes[0].axvspan(0.05, 0.2, color="0.92", zorder=0)
    axes[0].set(xlabel="measured reliance at the end", ylabel="score of the probes at the end")
    axes[0].legend(fontsize=7, ncol=2)
    table = by_cue([row for row in rows if row["state"] == "reliant"])
    names = [f"{row['cue']}, {row['arm']} (n={row['n']})" for row in table]
    places = np.arange(len(names))
    axes[1].barh(places, [row["rate"] for row in table], color="0.8")
    bounds = [tuple(map(float, row["interval"].split(" to "))) for row in table]
    for place, (low, high) in zip(places, bounds, strict=True):
        axes[1].plot([low, high], [place, place], color="0.2", linewidth=1)
    axes[1].set_yticks(places, names, fontsize=6)
    axes[1].set(xlabel="share of reliant runs with an alarm", xlim=(0, 1.02))
    figure.tight_layout()
    figure.savefig(out / "alarms.png", dpi=110)
    plt.close(figure)


def write_csv(path: Path, table: list[Row]) -> None:
    names = list(dict.fromkeys(name for row in table for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in table)


def markdown(table: list[Row]) -> list[str]:
    if not table:
        return ["(none)"]
    names = list(dict.fromkeys(name for row in table for name in row))
    shown = [[_cell(row.get(name, "")) for name in names] for row in table]
    return ["| " + " | ".join(line) + " |" for line in (names, ["---"] * len(names), *shown)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)
