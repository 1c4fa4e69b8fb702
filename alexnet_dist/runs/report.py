"""report.html: a run, or several beside each other, as one page that needs nothing else.

The page is put together from what the run folder holds: rows of metrics.jsonl, the figures and tables of plots/, and
what the run has noted of its settings and its machine. Whatever is missing is left out, with a note.
"""

from __future__ import annotations

import base64
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from alexnet_dist.base.durable import format_json, write_file
from alexnet_dist.base.machine import list_versions
from alexnet_dist.base.progress import format_seconds
from alexnet_dist.base.text import escape_text
from alexnet_dist.figures.charts import Axes, Curve, describe_chart
from alexnet_dist.figures.curves import find_unit
from alexnet_dist.figures.vega import explain_missing
from alexnet_dist.runs.comparison import SPREAD, find_differences, group_seeds, summarize_seeds
from alexnet_dist.runs.folder import PLOTS, now
from alexnet_dist.runs.past_runs import PastRun
from alexnet_dist.runs.report_parts import (
    Cell,
    Grid,
    Part,
    describe_run,
    drop_empty_columns,
    show_number,
    show_share,
    show_speed,
    show_time,
    text,
)
from alexnet_dist.runs.report_pictures import MOST_PICTURE_BYTES, embed_curves
from alexnet_dist.tracking.trackers import find_most_memory

PAGE = Path(__file__).parent
REPORT = "report.html"
VALIDATION, EPOCHS, LOG_POINTS = "validation", "train, mean of the epoch", "train, log points"
TEST = "test, of the best weights"
WAITS, WAITS_MOSTLY = 0.05, 0.25  # parts of the time of training


@dataclass(frozen=True)
class Shown:
    """What the template asks of a run."""

    number: int
    name: str
    epochs: Grid
    limits: str
    parts: list[Part]
    curves: Any


def write_report(path: Path, runs: Sequence[PastRun], vega: str | None) -> None:
    """Replace a page.

    Args:
        path: the file.
        runs: one or more.
        vega: the script that draws charts; None = there is none, and the page says how to get it.

    Raises:
        MachineError: the file cannot be written.
    """
    write_file(path, format_page(runs, vega).encode("utf-8", "backslashreplace"))


def format_page(runs: Sequence[PastRun], vega: str | None) -> str:
    """The page as text; see `write_report`."""
    from markupsafe import Markup

    charts = _make_charts(runs)
    specs = [{"id": chart["id"], "spec": chart["spec"]} for group in charts.values() for chart in group]
    script = (PAGE / "report.js").read_text(encoding="utf-8")
    vega = None if vega is None else vega.replace("</script", "<\\/script")
    shown = [_show_run(number, run, len(runs), vega is not None) for number, run in enumerate(runs, start=1)]
    differences = find_differences(runs) if len(runs) > 1 else {}
    names = [escape_text(run.name) for run in runs]
    page: str = _load_template().render(
        title=f"{names[0]}: report" if len(runs) == 1 else f"{len(runs)} runs beside each other",
        subtitle=f"Written {show_time(now())} by alexnet_dist {list_versions()['alexnet_dist']}. "
        + _describe_states(runs),
        policy=Markup(_make_policy([script, *([vega] if vega is not None else [])])),
        css=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        vega=Markup(vega or ""),
        has_vega=vega is not None,
        without_vega=explain_missing(),
        specs=Markup(_hide_tags(format_json(specs, REPORT))),
        parts=_list_parts(shown),
        notes=[f"{run.name}: {note}" for run in runs for note in run.notes],
        summary=drop_empty_columns([_SUMMARY_HEAD, *map(_summarize, runs)]),
        differences=[
            [text("setting"), *map(text, names)],
            *([text(key), *map(text, differences[key])] for key in differences),
        ],
        seed_tables=[_tabulate_seeds(group) for group in group_seeds(runs)],
        charts=charts,
        runs=shown,
    )
    return page


@cache
def _load_template() -> Any:
    """With names of any kind made harmless: tags by Jinja's autoescape, control characters by ours."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def settle(value: Any) -> Any:
        return escape_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    loader = FileSystemLoader(PAGE)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=settle).get_template(
        "report.html.jinja"
    )


def _make_policy(scripts: Sequence[str]) -> str:
    """What a browser lets the page do: run these scripts, show what it holds, and ask nobody for anything."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    rules = ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src {allowed}")
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def _hide_tags(json: str) -> str:
    """JSON in which a browser finds no tag."""
    return json.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _describe_states(runs: Sequence[PastRun]) -> str:
    if len(runs) > 1:
        return f"{sum(run.state == 'finished' for run in runs)} of {len(runs)} have finished."
    (run,) = runs
    at = "" if run.epoch is None else f", epoch {run.epoch}" + (f" of {run.planned}" if run.planned else "")
    return f"The run is {'going on' if run.state == 'running' else run.state}{at}."


def _list_parts(shown: Sequence[Shown]) -> list[tuple[str, str]]:
    first = [("summary", "Summary"), ("curves", "Curves"), ("speed", "Speed")]
    if len(shown) == 1:
        return first + [(part.id, part.title) for part in shown[0].parts]
    return first + [(f"run-{run.number}", run.name) for run in shown]


# -- results ----------------------------------------------------------------------------------------------------------

_SUMMARY_HEAD = [
    *map(text, ("run", "recipe", "state", "best val top-1", "in epoch", "top-5", "last val top-1", "test top-1")),
    *map(text, ("epochs", "time", "images/s", "processes", "memory (MiB)")),
]


def _summarize(run: PastRun) -> list[Cell]:
    top5 = run.number("best_top5")
    last = run.number("final_top1")
    judged = run.select("eval", "top1")
    planned = "" if run.planned is None else f"/{run.planned}"
    return [
        *map(text, (run.name, run.recipe, run.state)),
        show_share(run.best_top1),
        show_number(run.best_epoch),
        show_share(top5 if top5 is not None else run.best.get("top5")),
        show_share(last if last is not None or not judged else judged[-1]["top1"]),
        show_share(run.number("test_top1")),
        Cell("" if run.epoch is None else f"{run.epoch}{planned}", run.epoch),
        Cell("" if run.seconds is None else format_seconds(run.seconds), run.seconds),
        show_speed(run.number("images_per_second")),
        show_number(run.facts.get("processes")),
        show_number(next(iter(find_most_memory(run.rows).values()), None), ",.0f"),
    ]


def _tabulate_seeds(group: Sequence[PastRun]) -> dict[str, Any]:
    rows = [[text(name) for name in ("", "mean", "standard deviation", "least", "most")]]
    for found in summarize_seeds(group):
        numbers = (found.mean, found.std, found.least, found.most)
        cells = [Cell(format_seconds(n), n) if found.measure == "seconds" else show_share(n) for n in numbers]
        rows.append([text({"seconds": "time", "best": "best val top-1"}.get(found.measure, found.measure)), *cells])
    title = f"{', '.join(run.name for run in group)}: {len(group)} seeds ({SPREAD})"
    return {"title": title, "rows": rows}


# -- curves -----------------------------------------------------------------------------------------------------------


Source = tuple[str, str, str]  # event and key of a row, and what its values are
RATE, TRAINING = "learning rate", "training"
LEARNING_CHARTS: Sequence[tuple[str, Axes, Sequence[Source]]] = (
    (
        "loss",
        Axes("Loss", "cross-entropy (nats)", "", has_zero=False),
        [("epoch", "train_loss", EPOCHS), ("eval", "loss", VALIDATION), ("train", "loss", LOG_POINTS)],
    ),
    (
        "top1",
        Axes("Top-1 accuracy", "top-1", "", is_share=True),
        [("epoch", "train_top1", EPOCHS), ("eval", "top1", VALIDATION), ("train", "top1", LOG_POINTS)],
    ),
    ("rate", Axes("Learning rate", RATE, ""), [("train", "lr", RATE)]),
)
SPEED_CHARTS: Sequence[tuple[str, Axes, Sequence[Source]]] = (
    ("throughput", Axes("Throughput", "images per second", ""), [("train", "images_per_second", TRAINING)]),
    (
        "wait",
        Axes("Waiting for images", "part of the time", "", is_share=True),
        [("train", "data_wait_fraction", TRAINING)],
    ),
    ("gpu-memory", Axes("GPU memory", "MiB", ""), [("train", "gpu_memory_mib", TRAINING)]),
)


def _make_charts(runs: Sequence[PastRun]) -> dict[str, list[dict[str, Any]]]:
    """The charts of learning and of speed, without those that would be empty."""
    units = [find_unit(run.select("epoch", "epoch")) for run in runs]
    place = units[0][1] if len({unit[1] for unit in units}) == 1 else "epoch, or update where no epoch has ended"
    groups: dict[str, list[dict[str, Any]]] = {"learning": [], "speed": []}
    for name, charts in (("learning", LEARNING_CHARTS), ("speed", SPEED_CHARTS)):
        for id_, axes, sources in charts:
            pairs = zip(runs, units, strict=True)
            curves = [curve for run, unit in pairs for curve in _find_curves(run, unit[0], sources, len(runs))]
            if curves:
                spec = describe_chart(replace(axes, place=place), curves)
                groups[name].append({"id": f"chart-{id_}", "title": axes.title, "spec": spec})
    return groups


def _find_curves(run: PastRun, scale: float, sources: Sequence[Source], num_runs: int) -> list[Curve]:
    """A run's curves; beside other runs without log points, where epochs tell of training, and without the test."""
    found: dict[str, Curve] = {}
    for event, key, what in sources:
        points = [(row["step"] / scale, row[key]) for row in run.select(event, key)]
        best = (run.best["step"] / scale, run.best[key]) if what == VALIDATION and points and run.best else None
        if points:
            found[what] = Curve(run.name, what, points, is_light=what == LOG_POINTS and bool(found), ring=best)
        if best is not None and num_runs == 1 and (tests := run.select("test", key)):
            found[TEST] = Curve(run.name, TEST, [(best[0], tests[-1][key])])
    if EPOCHS in found and num_runs > 1:
        found.pop(LOG_POINTS, None)
    is_first = VALIDATION if num_runs > 1 else ""  # then dashes tell the values apart, and validation is solid
    return sorted(found.values(), key=lambda curve: curve.what != is_first)


def find_limits(run: PastRun) -> str:
    """What limited the speed, as the log points tell, in sentences; "" where there are none."""
    rows = run.select("train", "data_wait_fraction", "images_per_second")
    if not rows:
        return ""
    waits = statistics.fmean(row["data_wait_fraction"] for row in rows)
    engine = str(run.facts.get("engine") or "engine not known")
    limit = f"Computing limits the speed: training waited {waits:.1%} of its time for images ({engine})."
    if waits >= WAITS_MOSTLY:
        limit = f"The images limit the speed: training waited {waits:.0%} of its time for them ({engine})."
        others = "more data.workers, or a faster disk"
        limit += f" Try more cores, {others}." if engine == "cache" else f" Try data.engine cache, {others}."
    elif waits >= WAITS:
        limit = f"Mostly computing limits the speed: training waited {waits:.0%} of its time for images ({engine})."
    speeds = [row["images_per_second"] for row in rows]
    least, most, middle = map(show_speed, (min(speeds), max(speeds), statistics.median(speeds)))
    span = f"{least} to {most}, median {middle}"
    return f"{limit} Images per second between two log points: {span}."


# -- a run ------------------------------------------------------------------------------------------------------------

_EPOCH_COLUMNS: Mapping[str, tuple[str, str]] = {
    "train loss": ("train_loss", ".4f"),
    "train top-1": ("train_top1", ".2%"),
    "val loss": ("val_loss", ".4f"),
    "val top-1": ("val_top1", ".2%"),
    "seconds": ("seconds", ".1f"),
}


def _show_run(number: int, run: PastRun, num_runs: int, has_vega: bool) -> Shown:
    room = MOST_PICTURE_BYTES // num_runs
    head = [text("epoch"), *map(text, _EPOCH_COLUMNS)]
    rows = [
        [show_number(row["epoch"]), *(show_number(row.get(key), form) for key, form in _EPOCH_COLUMNS.values())]
        for row in run.select("epoch", "epoch")
    ]
    curves = None if has_vega else embed_curves(run.folder / PLOTS, room // 4)
    return Shown(number, escape_text(run.name), [head, *rows], find_limits(run), describe_run(run, room), curves)
