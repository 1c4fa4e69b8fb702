"""Weights & Biases as a mirror of metrics.jsonl, which never fails or delays a run."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from alexnet_dist.base.deadlines import Aside, call_with_deadline
from alexnet_dist.base.text import escape_values, quote_word
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Kind, Row, Run, Start, rename_for_display
from alexnet_dist.tracking.wandb_account import (
    choose_wandb_mode,
    explain,
    hide_places,
    import_wandb,
    list_overruled,
    quiet_settings,
    read_settings,
    settle_names,
)
from alexnet_dist.tracking.wandb_media import clear_staged, log_code, log_model, log_pictures, stage_model
from alexnet_dist.tracking.wandb_sweep import find_trial

logger = logging.getLogger("alexnet_dist")

WANDB_BUDGET_SECONDS = 9.5  # what all slow calls together may cost a run, beside 3 s for W&B's word and 2 s at exit
ONLINE_SECONDS = 6.0  # of these, for the first word with the server
RESTART_SECONDS = 1.5
SLOW_SECONDS = 0.1  # calls below this do not count
PICTURE_SECONDS, MODEL_SECONDS = 20.0, 600.0  # after the end of the run, to upload what there is of them
EXIT_SECONDS = 2.0  # beside what is left of the budget, for W&B's service to end
SERVICE = "wandb-core"
TOLD = {  # what the start of a run says of `tracking.privacy`
    "minimal": "it gets numbers and settings, no images (tracking.privacy standard adds them)",
    "standard": "it gets images and names of files, too (tracking.privacy standard)",
    "full": "it gets images, host name, git and code, too (tracking.privacy full)",
}


class WandbMirror:
    """Weights & Biases. It never fails or delays a run by more than 15 seconds.

    A run that cannot begin online is recorded offline, so that nothing is lost. Pictures and models are logged aside,
    in a thread of their own, and waited for when the run has ended.

    Args:
        folder: the run folder; W&B writes below its wandb/.
        mode: offline or online.
        run_id: the same after a resume.
        config: what W&B shows as the run's configuration, nested.
        rows: what metrics.jsonl holds already. An offline mirror is made anew from them, so that it equals the file
            also after a kill.
        tracking: settings of `TrackingConfig`, by name.
        start: makes W&B's run from arguments of `wandb.init`.
        call: runs a function for some seconds at most.
    """

    def __init__(
        self,
        *,
        folder: Path,
        mode: str,
        run_id: str,
        config: Mapping[str, Any],
        rows: list[Row],
        tracking: Mapping[str, Any],
        start: Callable[..., Any] | None = None,
        call: Callable[[Callable[[], Any], float], Any] = call_with_deadline,
    ) -> None:
        self._call, self._budget = call, WANDB_BUDGET_SECONDS
        self._folder, self._mode, self._is_finished = folder, mode, False
        self._run: Any = None
        self._run_id, self._tracking, self._best = run_id, tracking, -1.0
        self._aside, self._grace, self._kept_step = Aside("wandb-pictures"), 0.0, -1
        threading.Thread(target=self._limit_exit, daemon=True, name="wandb-exit").start()

        def begin(mode: str) -> Any:
            names = settle_names(tracking, folder, read_settings())
            words = {"dir": str(folder), "id": run_id, "resume": "allow", "mode": mode, **names}
            words["settings"] = quiet_settings(ONLINE_SECONDS - 1, tracking["privacy"])
            with _no_command_line():
                return _describe((start or _start_run)(**words), config)

        if mode == "online":
            self._run = self._guard("online", lambda: begin("online"), "offline from here on", ONLINE_SECONDS)
            if self._run is None:
                self._mode = "offline"
                # The service holds on to the id of the run that failed.
                self._budget -= RESTART_SECONDS
                if not self._call(self._leave_service, RESTART_SECONDS):
                    _kill_service()
        if self._mode == "offline":
            _remove_offline_runs(folder / "wandb", run_id)
            clear_staged(folder / "wandb")
            self._run = self._guard("start", lambda: begin("offline"))
        atexit.register(self._leave_service)  # after W&B's own handler, hence called before it
        if self._mode == "offline":
            for row in rows:
                self.log(row)
        elif self._run is not None:
            logger.info("W&B: %s", self._run.url)
            for row in rows:
                self._note_best(row)
        if tracking["privacy"] == "full":
            self._log_aside("code", partial(log_code, folder=folder / "wandb", package=Path(__file__).parents[1]))

    def log(self, row: Row) -> None:
        """Mirror a row; our own `step` is the x-axis, so W&B drops nothing that a resumed run logs again."""
        if self._run is not None:
            self._guard("log", lambda: self._run.log(rename_for_display(row)))
            self._note_best(row)

    def _note_best(self, row: Row) -> None:
        """Keep the best validation top-1 as a plain number of the summary, which a sweep looks at."""
        if row["event"] == "eval" and row.get("split") == "val" and row["top1"] > self._best:
            self._best = row["top1"]
            if self._run is not None:
                self._guard("summary", lambda: self._run.summary.update({"best_top1": self._best}) or True)

    @property
    def shows_images(self) -> bool:
        """Whether W&B may get images, and names of files and classes."""
        return bool(self._tracking["privacy"] != "minimal")

    def show(self, pictures: Pictures) -> None:
        """Log pictures, aside."""
        self._grace, folder = max(self._grace, PICTURE_SECONDS), self._folder / "wandb"
        log = partial(log_pictures, folder=folder, pictures=pictures, tells_of_images=self.shows_images)
        self._log_aside("pictures", log)

    def keep(self, model: Path, facts: Row, is_last: bool) -> None:
        """Log model/ as an artifact, aside, if `tracking.log_model` wants it now."""
        wanted, step = self._tracking["log_model"], facts["step"]
        if self._run is None or not wanted or (wanted == "end" and not is_last) or step == self._kept_step:
            return
        self._kept_step, self._grace, folder = step, MODEL_SECONDS, self._folder / "wandb"
        staged = self._guard("model", lambda: stage_model(model, folder, step))
        if staged is not None:
            log = partial(log_model, folder=folder, staged=staged, run_id=self._run_id, facts=facts)
            self._log_aside("model", log)

    def finish(self, summary: Row) -> None:
        """End the W&B run and say how to upload what did not go online."""
        if self._run is None:
            return
        wanted = {key: value for key, value in summary.items() if value is not None}

        def end() -> bool:
            self._aside.wait()
            self._run.summary.update({"final": wanted})
            self._run.finish()
            return True

        self._is_finished = bool(self._guard("finish", end, extra=self._grace))
        if self._mode == "online" and self._is_finished:
            clear_staged(self._folder / "wandb")
            return
        runs = sorted((self._folder / "wandb").glob("*run-*"), key=lambda path: path.name[-24:])  # by time and id
        if runs:
            logger.info("W&B %s; upload with: wandb sync %s", self._mode, quote_word(runs[-1]))

    def _log_aside(self, what: str, log: Callable[[Any], None]) -> None:
        """Log something to W&B's run while training goes on; after a failure the run goes on without W&B."""
        run = self._run

        def act() -> None:
            try:
                if self._run is not None:
                    log(run)
            except Exception as error:  # noqa: BLE001 (W&B must not end a run, whatever it raises)
                self._give_up(what, explain(error))

        if run is not None and not self._aside.do(act):
            logger.warning("W&B is slow: %s not logged", what)

    def _guard(
        self,
        what: str,
        action: Callable[[], Any],
        then: str = "the run goes on",
        limit: float = math.inf,
        extra: float = 0.0,
    ) -> Any:
        """Do something with W&B in bounded time; after a failure the run goes on without it.

        `extra` seconds are free: the budget does not pay for them.
        """
        began, seconds = time.monotonic(), max(0.0, min(self._budget, limit)) + extra
        try:
            done = self._call(lambda: (action(),), seconds)
        except Exception as error:  # noqa: BLE001 (W&B must not end a run, whatever it raises)
            done, why = None, explain(error)
        else:
            why = f"no answer in {seconds:.0f} s"
        elapsed = max(0.0, time.monotonic() - began - extra)
        self._budget -= elapsed if elapsed > SLOW_SECONDS else 0.0
        if done is not None:
            return done[0]
        self._give_up(what, why, then)
        return None

    def _give_up(self, what: str, why: str, then: str = "the run goes on") -> None:
        self._run = None
        logger.warning("W&B %s failed (%s); %s, metrics.jsonl has everything", what, why, then)

    def _leave_service(self) -> bool:
        """Let W&B's service go, when the process ends or no server was found.

        W&B's own handler at exit, whose place this takes, waits without a limit and prints a traceback where the
        service is gone. `_limit_exit` gives the limit, from a thread that is there already: none can be started then.
        """
        import wandb

        with contextlib.suppress(BaseException):
            wandb.teardown(exit_code=0 if self._is_finished else 1)
        return True

    def _limit_exit(self) -> None:
        threading.main_thread().join()
        seconds = max(0.0, self._budget) + EXIT_SECONDS
        time.sleep(seconds)
        if _kill_service():
            logger.warning("W&B's service did not end in %.0f s and was killed", seconds)


def _kill_service() -> bool:
    """Kill the service that W&B started for this process; whether there was one."""
    found = False
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it may end at this moment
            if child.name().startswith(SERVICE):
                child.kill()
                found = True
    return found


def _remove_offline_runs(folder: Path, run_id: str) -> None:
    """Remove what earlier starts of this run wrote: folders of exactly W&B's names, directly in wandb/ of the run."""
    ours = re.compile(rf"offline-run-[0-9]{{8}}_[0-9]{{6}}-{re.escape(run_id)}")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)


@contextlib.contextmanager
def _no_command_line() -> Iterator[None]:
    """W&B sends the command line to its service, although it then keeps it out of its files."""
    before = sys.argv
    sys.argv = ["alexnet-dist"]
    try:
        yield
    finally:
        sys.argv = before


def _start_run(**arguments: Any) -> Any:
    import wandb

    return wandb.init(**arguments)


def _describe(run: Any, config: Mapping[str, Any]) -> Any:
    """Give a started run its configuration, our x-axis and which value of a metric is the best."""
    run.config.update(dict(config), allow_val_change=True)
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    run.define_metric("val/top1", step_metric="step", summary="max")
    run.define_metric("val/top5", step_metric="step", summary="max")
    run.define_metric("val/loss", step_metric="step", summary="min")
    return run


def _prepare(run: Run) -> Start | None:
    tracking = escape_values(run.tracking)
    settings = hide_places(escape_values(run.settings), tracking["privacy"])
    config = {**settings, "run": escape_values(run.facts)}
    mode, reason = choose_wandb_mode(tracking["wandb"])
    if tracking["wandb"] != "disabled":
        told = f"; {TOLD[tracking['privacy']]}" if mode != "disabled" else ""
        logger.info("W&B: %s (%s)%s", mode, reason, told)
    overruled = list_overruled(tracking)
    if overruled:
        logger.info("W&B: without effect: %s", ", ".join(overruled))
    if mode == "disabled":
        return None
    run_id = find_trial() or run.run_id
    facts = {"folder": run.folder, "mode": mode, "run_id": run_id, "config": config, "tracking": tracking}
    return lambda rows: WandbMirror(**facts, rows=rows)


def _check_installed() -> None:
    import_wandb()


WANDB = Kind(_prepare, lambda tracking: tracking["wandb"] in ("offline", "online"), _check_installed, is_for_sets=True)
