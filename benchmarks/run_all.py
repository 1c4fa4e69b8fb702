"""Runs every benchmark, each in a process of its own, one after the other, and makes one short page of their JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.report import format_cell

BENCHMARKS = (
    *(
        "startup",
        "model",
        "normalization",
        "convolutions",
        "threads",
        "original",
        "loader",
        "curves",
        "end_to_end",
        "sources",
        "parallel",
        "strategy_curves",
        "tracking",
    ),
)
EXAMPLES = """Run all benchmarks; writes FOLDER/NAME.json for each and FOLDER/README.md.

examples:
  python benchmarks/run_all.py --out benchmarks/results
  python benchmarks/run_all.py --quick --out figures --data.root data/imagenet_subset

`--only loader curves` runs these, and makes the page of every JSON file in FOLDER; `--only` alone makes the page."""


def main() -> int:
    """Run them; 0 if all ended well, else the first exit code that was not 0."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files and the page")
    parser.add_argument("--only", nargs="*", choices=BENCHMARKS, default=BENCHMARKS, help="benchmarks to run")
    options, words = parser.parse_known_args()
    codes = {name: run(name, words, options.out) for name in options.only}
    files = {name: options.out / f"{name}.json" for name in BENCHMARKS if not codes.get(name)}
    found = {name: read_json(path) for name, path in files.items() if path.is_file()}
    if found:
        (options.out / "README.md").write_text(format_page(found), encoding="utf-8")
    return next((code for code in codes.values() if code), 0)


def run(name: str, words: list[str], folder: Path) -> int:
    """Run one benchmark, with the words of the command line that are not ours; its exit code."""
    print(f"== {name}", flush=True)
    script = Path(__file__).with_name(f"{name}.py")
    return subprocess.run([sys.executable, str(script), *words, "--out", str(folder / f"{name}.json")]).returncode


def read_json(path: Path) -> dict[str, Any]:
    """A benchmark's figures."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def format_page(found: Mapping[str, dict[str, Any]]) -> str:
    """Machine, ratios and notes in Markdown. All of it comes from the JSON files."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `benchmarks/run_all.py` from the JSON files beside this page. The first lines of `benchmarks/NAME.py`",
        "say how each figure is measured.",
        "",
        *(describe_origin(name, report["environment"]) for name, report in found.items()),
        "",
        "| benchmark | ratio | median | min | max | what |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, report in found.items():
        for ratio, values in report["ratios"].items():
            cells = [format_cell(values[key]) for key in ("median", "min", "max", "what")]
            lines.append(f"| {name} | {ratio} | {' | '.join(cells)} |")
    notes = [f"- {name}: {note}" for name, report in found.items() for note in report["notes"]]
    return "\n".join([*lines, "", *notes, ""])


def describe_origin(name: str, environment: Mapping[str, Any]) -> str:
    """What was measured where and when: files of several runs and machines may lie in one folder."""
    versions = environment["versions"]
    matrix_units = ", ".join(environment["cpu_features"]) or "none"
    parts = [
        f"{environment['cpu']}, {environment['cores']} cores ({matrix_units}), {environment['memory_gib']} GiB",
        f"GPUs: {', '.join(environment['gpus']) or 'none'}",
        ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "torchvision") if name in versions),
        f"commit {environment['git_commit']}, {environment['time']}, effort: {environment['effort']}",
    ]
    return f"- {name}: {'; '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
