"""Weights & Biases as a mirror of metrics.jsonl, which never fails or delays a run."""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from alexnet_dist.errors import MachineError
from alexnet_dist.extras import import_extra
from alexnet_dist.text import quote_word
from alexnet_dist.training.trackers import Row, rename_for_display

logger = logging.getLogger("alexnet_dist")

WANDB_BUDGET_SECONDS = 12.0  # what all slow calls together may cost a run
SLOW_SECONDS = 0.1  # calls below this do not count
PROBE_SECONDS = 2.0


class WandbMirror:
    """Weights & Biases through Accelerate's tracker. It never fails or delays a run by more than 15 seconds.

    Args:
        start: makes Accelerate's tracker from a project name and arguments of `wandb.init`.
        call_with_deadline: runs a function for some seconds at most.
        folder: the run folder; W&B writes below its wandb/.
        mode: offline or online.
        run_id: the same after a resume.
        settings: the run's settings, nested.
        rows: what metrics.jsonl holds already. An offline mirror is made anew from them, so that it equals the file
            also after a kill.
        tracking: project, entity, name and tags of `TrackingConfig`.
    """

    def __init__(
        self,
        start: Callable[[str, dict[str, Any]], Any],
        call_with_deadline: Callable[[Callable[[], Any], float], Any],
        *,
        folder: Path,
        mode: str,
        run_id: str,
        settings: Mapping[str, Any],
        rows: list[Row],
        tracking: Mapping[str, Any],
    ) -> None:
        self._call, self._budget = call_with_deadline, WANDB_BUDGET_SECONDS
        self._folder, self._mode = folder, mode
        if mode == "offline":
            _remove_offline_runs(folder / "wandb", run_id)
        arguments = {
            "dir": str(folder),
            "id": run_id,
            "resume": "allow",
            "mode": mode,
            "entity": tracking["entity"],
            "name": tracking["name"] or folder.name,
            "tags": list(tracking["tags"]),
            "settings": _quiet_settings(),
        }
        self._tracker: Any = None
        self._tracker = self._guard("start", lambda: _describe(start(tracking["project"], arguments), settings))
        if mode == "offline":
            for row in rows:
                self.log(row)

    def log(self, row: Row) -> None:
        """Mirror a row; our own `step` is the x-axis, so W&B drops nothing that a resumed run logs again."""
        if self._tracker is not None:
            self._guard("log", lambda: self._tracker.log(rename_for_display(row)))

    def finish(self, summary: Row) -> None:
        """End the W&B run and say how to upload an offline one."""
        if self._tracker is None:
            return
        wanted = {key: value for key, value in summary.items() if value is not None}

        def end() -> None:
            self._tracker.tracker.summary.update({"final": wanted})
            self._tracker.finish()

        self._guard("finish", end)
        if self._mode == "offline":
            runs = sorted((self._folder / "wandb").glob("offline-run-*"))
            if runs:
                logger.info("W&B offline; upload with: wandb sync %s", quote_word(runs[-1]))

    def _guard(self, what: str, action: Callable[[], Any]) -> Any:
        """Do something with W&B in bounded time; after a failure the run goes on without it."""
        began = time.monotonic()
        try:
            done = self._call(lambda: (action(),), self._budget)
        except Exception as error:  # noqa: BLE001 (W&B must not end a run, whatever it raises)
            done, why = None, f"{type(error).__name__}: {error}"
        else:
            why = f"no answer in {self._budget:.0f} s"
        elapsed = time.monotonic() - began
        self._budget -= elapsed if elapsed > SLOW_SECONDS else 0.0
        if done is not None:
            return done[0]
        self._tracker = None
        logger.warning("W&B %s failed (%s); the run goes on, metrics.jsonl has everything", what, " ".join(why.split()))
        return None


def _remove_offline_runs(folder: Path, run_id: str) -> None:
    """Remove what earlier starts of this run wrote: folders of exactly W&B's names, directly in wandb/ of the run."""
    ours = re.compile(rf"offline-run-[0-9]{{8}}_[0-9]{{6}}-{re.escape(run_id)}")
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if ours.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)


def _describe(tracker: Any, settings: Mapping[str, Any]) -> Any:
    """Give a started tracker the settings, our x-axis and which value of a metric is the best."""
    tracker.store_init_configuration(dict(settings))
    run = tracker.tracker
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    run.define_metric("val/top1", step_metric="step", summary="max")
    run.define_metric("val/top5", step_metric="step", summary="max")
    run.define_metric("val/loss", step_metric="step", summary="min")
    return tracker


def _quiet_settings() -> Any:
    """W&B settings under which its files hold no command line, environment, code, host or console output."""
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        init_timeout=5,
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def choose_wandb_mode(requested: str) -> tuple[str, str]:
    """offline, online or disabled, and the reason.

    Raises:
        MachineError: W&B was asked for and is not installed, or cannot be imported.
    """
    if requested == "disabled":
        return "disabled", "asked for"
    try:
        import_extra("wandb", "wandb")
    except MachineError as error:
        if requested == "auto":
            return "disabled", str(error)
        raise
    if requested == "offline":
        return "offline", "asked for"
    return _judge_network(requested)


def _judge_network(requested: str) -> tuple[str, str]:
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not _has_account(url.hostname or ""):
        return "offline", "no W&B account on this machine (wandb login)"
    try:
        with socket.create_connection((url.hostname or "", url.port or 443), timeout=PROBE_SECONDS):
            return "online", "asked for" if requested == "online" else "account and network found"
    except OSError:
        return "offline", f"{url.hostname} cannot be reached"


def _has_account(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
