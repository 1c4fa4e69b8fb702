"""Writes the page of speeds, its figure, and README's line about it, from the JSON files of benchmarks/results.

    python benchmarks/speed_page.py

The page's own words stay: what stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->` is made anew. A file that
is not there leaves its tables with the words `not measured`. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rivals import PUBLISHED
from time_to_accuracy import OURS

from alexnet_dist.figures.canvas import BLUE, GRAY, TEXT_SIZE, new_figure, save_figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, FIGURE, README = (
    ROOT / "docs" / "results" / "speed.md",
    ROOT / "docs" / "results" / "speed.png",
    ROOT / "README.md",
)
NOT_MEASURED = "not measured"
INCHES = (8.0, 3.6)
ARMS = {  # of rivals.py, in the order of the table and the figure
    "imagenet_fp32": "PyTorch's ImageNet recipe, fp32",
    "imagenet_bf16": "PyTorch's ImageNet recipe, autocast",
    "accelerate_bf16": "Accelerate script, bf16",
    "compiled_bf16": "torch.compile (max-autotune), autocast",
    "dali_bf16": "plain DALI, autocast",
    "ours_fp32": "alexnet_dist, fp32",
    "ours_bf16": "alexnet_dist, bf16",
    "ours_cache_bf16": "alexnet_dist, bf16, from the cache",
}
FASTEST = "ours_bf16"
TIMED = {  # of time_to_accuracy.py
    OURS: "alexnet_dist",
    "same_recipe_bf16": "plain PyTorch with our recipe, autocast",
    "imagenet_bf16": ARMS["imagenet_bf16"],
    "imagenet_fp32": ARMS["imagenet_fp32"],
    "accelerate_bf16": ARMS["accelerate_bf16"],
    "compiled_bf16": ARMS["compiled_bf16"],
    "dali_bf16": ARMS["dali_bf16"],
    "published": "the published system's own way",
}
SETS = {"imagenette": "imagenette224", "fruits": "fruits10"}
ENGINE_ARMS = {"torchvision": "torchvision", "dali": "dali_cpu", "cache": "cache"}  # of loader.py
TARGETS = (  # file, ratio, what, least
    ("rivals", "ours_fp32/imagenet_fp32", "fp32 over PyTorch's recipe in fp32, end to end", 1.5),
    ("rivals", "ours_bf16/imagenet_fp32", "bf16 over PyTorch's recipe in fp32, end to end", 3.0),
    ("model", "trainer_step/minimal_loop", "trainer's step over a hand-written loop", 1.0),
    ("normalization", "paper/paper_without_lrn", "`paper` over the same network without LRN", 0.9),
    ("loader", "dali_cpu/fancy_dali", "`dali` over plain DALI at the same work, batches alone", 0.95),
    ("end_to_end", "end_to_end/limit", "end to end over what loader and network allow", 0.95),
)


def main() -> int:
    """Write them; the exit code."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_args()
    write_page()
    return 0


def write_page() -> None:
    """The page, the figure, and README's lines."""
    found = read_results(RESULTS)
    blocks = {
        "rivals": format_rivals(found.get("rivals")),
        "published": format_published(found.get("rivals")),
        "times": format_times(found.get("time_to_accuracy")),
        "targets": format_targets(found),
        "engines": format_engines(found.get("loader")),
    }
    has_figure = "rivals" in found
    if has_figure:
        draw_rivals(FIGURE, found["rivals"])
    blocks["figure"] = "![Images per second of eight ways to train](speed.png)" if has_figure else ""
    PAGE.write_text(fill_blocks(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
    line = {"speed": format_readme(found.get("rivals"))}
    README.write_text(fill_blocks(README.read_text(encoding="utf-8"), line), encoding="utf-8")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Reports by the name of their benchmark; those of --quick and --tiny say nothing that a page may repeat."""
    names = dict.fromkeys(["rivals", "time_to_accuracy", *(name for name, *_ in TARGETS)])
    reports = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in names if (folder / f"{name}.json").is_file()
    }
    return {name: report for name, report in reports.items() if report["environment"]["effort"] == "full"}


def fill_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """The text with each block between its two comments replaced.

    Raises:
        ValueError: a block has no place in the text.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        body = f"\n\n{block}\n\n" if block else "\n\n"
        text, count = pattern.subn(lambda _, made=begin + body + end: made, text)
        if count != 1:
            raise ValueError(f"the text has {count} places for {name}")
    return text


# -- tables -----------------------------------------------------------------------------------------------------------


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def describe_machine(environment: Mapping[str, Any]) -> str:
    """The hardware, what it has for bf16, and the day."""
    hardware = ", ".join(environment["gpus"]) or environment["cpu"].removesuffix(" Processor")
    units = next((name for name in ("amx_tile", "avx512_bf16") if name in environment["cpu_features"]), "no bf16")
    return f"{hardware} ({units}), {environment['time'][:10]}"


def describe_origin(report: Mapping[str, Any]) -> str:
    """Where, when and with what a file was measured, in one line."""
    environment = report["environment"]
    commit = (environment["git_commit"] or "unknown")[:7]
    machine = describe_machine(environment)
    return f"{machine}, {environment['cores']} cores, torch {environment['versions']['torch']}, commit {commit}."


def format_speed(row: Mapping[str, Any]) -> str:
    """Images per second, least to largest in brackets; why not, where it is not measured."""
    if "missing" in row:
        return f"{NOT_MEASURED}: {row['missing']}"
    least, most = row["images_per_second_min"], row["images_per_second_max"]
    return f"{row['images_per_second']:.0f} ({least:.0f} to {most:.0f})"


def format_ratio(ratio: Mapping[str, Any] | None) -> str:
    """The median and, where they differ from it, the least and the largest."""
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def format_rivals(report: Mapping[str, Any] | None) -> str:
    """Ways to train, with images per second, and how much faster ours is."""
    if report is None:
        return NOT_MEASURED.capitalize() + "."
    rows = {row["arm"]: row for row in report["rows"]}
    cells = [
        [words, format_speed(rows[arm]), format_ratio(report["ratios"].get(f"{FASTEST}/{arm}"))]
        for arm, words in ARMS.items()
        if arm in rows
    ]
    header = ["way to train", "images/s (least to most)", f"{ARMS[FASTEST]}, over it"]
    return f"{format_table(header, cells)}\n\n{describe_origin(report)}"


def format_published(report: Mapping[str, Any] | None) -> str:
    """The five published ways beside our recipes of their names."""
    if report is None:
        return NOT_MEASURED.capitalize() + "."
    rows = {row["arm"]: row for row in report["rows"]}
    cells = [
        [
            f"`{name}`",
            *(format_speed(rows[arm]) for arm in (f"{name}_published", name)),
            format_ratio(report["ratios"].get(f"{name}/{name}_published")),
        ]
        for name in PUBLISHED
        if name in rows
    ]
    return format_table(["system", "as published, images/s", "our recipe, images/s", "ratio"], cells)


def format_times(report: Mapping[str, Any] | None) -> str:
    """Seconds to an accuracy."""
    if report is None:
        return NOT_MEASURED.capitalize() + "."
    cells = [
        [
            SETS[row["task"]],
            f"{row['goal']:.0%}",
            TIMED[row["arm"]],
            describe_time(row),
            f"{row['top1']:.1%}, {row['epochs']:.0f}" if "missing" not in row else "",
        ]
        for row in report["rows"]
    ]
    table = format_table(["pictures", "goal", "program", "seconds", "best top-1, epochs"], cells)
    return f"{table}\n\n{describe_origin(report)}"


def describe_time(row: Mapping[str, Any]) -> str:
    """When the goal was reached, or when the program was stopped."""
    if "missing" in row:
        return f"{NOT_MEASURED}: {row['missing']}"
    return f"{row['seconds']:.0f}" if row["reached"] else f"not within {row['seconds']:.0f}"


def format_engines(report: Mapping[str, Any] | None) -> str:
    """Engines, without a network, as multiples of the usual way to read images."""
    if report is None:
        return NOT_MEASURED.capitalize() + "."
    ratios = {engine: report["ratios"].get(f"{arm}/standard") for engine, arm in ENGINE_ARMS.items()}
    cells = [[f"`{engine}`", format_ratio(ratio)] for engine, ratio in ratios.items() if ratio is not None]
    return f"{format_table(['engine', 'multiple (least to most)'], cells)}\n\n{describe_origin(report)}"


def format_targets(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What was to be reached, and whether it was."""
    cells = []
    for name, ratio, words, least in TARGETS:
        values = found.get(name, {}).get("ratios", {}).get(ratio)
        state = NOT_MEASURED if values is None else "reached" if values["median"] >= least else "missed"
        where = describe_machine(found[name]["environment"]) if values is not None else ""
        cells.append([words, f"{least:g}", format_ratio(values), state, where])
    return format_table(["ratio of images per second", "target", "measured (least to most)", "", "where"], cells)


def format_readme(report: Mapping[str, Any] | None) -> str:
    """The figure and a sentence, or nothing."""
    ratio = (report or {}).get("ratios", {}).get("ours_bf16/imagenet_fp32")
    if ratio is None:
        return ""
    words = f"{ratio['median']:.1f} times the images of PyTorch's ImageNet recipe in fp32"
    return (
        "![Images per second of eight ways to train](docs/results/speed.png)\n\n"
        f"*The same network, crops and pictures: in bf16, alexnet_dist trains {words}.*"
    )


# -- the figure -------------------------------------------------------------------------------------------------------


def draw_rivals(path: Path, report: Mapping[str, Any]) -> None:
    """A bar for each way to train, with its spread over the rounds."""
    rows = {row["arm"]: row for row in report["rows"] if "missing" not in row}
    arms = [arm for arm in ARMS if arm in rows][::-1]
    middles = [rows[arm]["images_per_second"] for arm in arms]
    spread = [
        [middle - rows[arm]["images_per_second_min"] for arm, middle in zip(arms, middles, strict=True)],
        [rows[arm]["images_per_second_max"] - middle for arm, middle in zip(arms, middles, strict=True)],
    ]
    environment = report["environment"]
    where = ", ".join(environment["gpus"]) or f"{environment['cores']} CPU cores"
    figure = new_figure(*INCHES, f"torchvision's AlexNet, trained end to end on {where}")
    axes = figure.subplots()
    colors = [BLUE if arm.startswith("ours") else GRAY for arm in arms]
    axes.barh([ARMS[arm] for arm in arms], middles, xerr=spread, color=colors, ecolor="black", capsize=3)
    for place, (middle, more) in enumerate(zip(middles, spread[1], strict=True)):
        axes.text(middle + more, place, f"  {middle:.0f}", va="center", fontsize=TEXT_SIZE)
    axes.set_xlabel("images per second; lines: least to most of the rounds", fontsize=TEXT_SIZE)
    axes.set_xlim(0, 1.15 * max(middle + more for middle, more in zip(middles, spread[1], strict=True)))
    axes.tick_params(labelsize=TEXT_SIZE)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
