"""`report`: a page about a run, or about several beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.base.progress import phase
from alexnet_dist.base.text import escape_text, format_bytes
from alexnet_dist.cli.compare import gather_runs
from alexnet_dist.cli.options import add_options, show
from alexnet_dist.settings.reader import new_parser, parse_options

EXAMPLES = """Write a page about a run, or about several beside each other.

examples:
  python launch/report.py runs/digits
  python launch/report.py runs/digits runs/digits-2 --out both.html

Of one run it is report.html in its folder, which training writes at the end of each epoch, too. Of several it is the
file that --out names. The page is one file: it opens from the disk and asks no server for anything."""


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("report", EXAMPLES, "RUN [RUN ...] [options]")
    parser.add_argument("folders", metavar="RUN", type=str, nargs="*", help="run folders, or folders of runs")
    parser.add_argument("--out", type=str, help="the file to write (default: report.html in the folder of the one run)")
    add_options(parser, "overwrite", "quiet", "debug")
    options = parse_options(argv, parser)
    if not options.folders:
        raise UsageError("no run is named", where="command line", remedy="give a run folder")
    runs = gather_runs(options.folders)
    if options.out is None and len(runs) > 1:
        raise UsageError(
            "--out is missing", where="command line", why=f"these are {len(runs)} runs", remedy="name a file"
        )
    from alexnet_dist.figures.vega import load_vega
    from alexnet_dist.runs.ownership import is_own_table
    from alexnet_dist.runs.report import REPORT, write_report
    from alexnet_dist.runs.targets import check_target

    path = runs[0].folder / REPORT if options.out is None else check_target(options.out, options.overwrite)
    if options.out is None and not is_own_table(path):
        raise UsageError(f"{REPORT} is not one that this program wrote", where=str(path), remedy="give --out")
    vega, why = None, ""
    with phase("writing the report"):
        try:
            vega = load_vega()
        except MachineError as error:
            why = f"without charts: {error}"
        write_report(path, runs, vega)
    show(f"report: {escape_text(str(path))}, {format_bytes(path.stat().st_size)}" + (f"\n{why}" if why else ""))
    return 0
