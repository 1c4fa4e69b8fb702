"""Verbs of the command line in forked processes, as a launcher would start them."""

from __future__ import annotations

import contextlib
import io

from alexnet_dist.cli.main import run
from helpers.dist_helper import run_processes

NOTHING_DRAWN = ("--log.plots", "false", "--log.report", "false")  # a training that ends sooner
Outcome = tuple[int, list[str], str]


def call(verb: str, *words: object, processes: int = 1) -> Outcome:
    """Run a verb: its exit code, equal in all processes, their error lines, everything on stderr."""
    code, errors, _ = call_with_output(verb, *words, processes=processes)
    return code, [line for line in errors.splitlines() if line.startswith("error: ")], errors


def call_well(verb: str, *words: object, processes: int = 1) -> str:
    """Run a verb that must end well; what it prints, stderr first."""
    code, errors, output = call_with_output(verb, *words, processes=processes)
    assert code == 0, errors + output
    return errors + output


def call_with_output(verb: str, *words: object, processes: int = 1) -> tuple[int, str, str]:
    """Run a verb: its exit code, equal in all processes, stderr and stdout of all of them."""
    results = run_processes(processes, _call_here, verb, [str(word) for word in words])
    codes = {code for code, _, _ in results}
    assert len(codes) == 1, results
    return codes.pop(), "".join(errors for _, errors, _ in results), "".join(output for _, _, output in results)


def _call_here(verb: str, words: list[str]) -> tuple[int, str, str]:
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            code = run(verb, words)
        except SystemExit as ended:  # --help
            code = int(ended.code or 0)
    return code, errors.getvalue(), output.getvalue()
