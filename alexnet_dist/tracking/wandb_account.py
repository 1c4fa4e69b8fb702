"""What W&B itself says: is there an account, is there a way to its server, and what do its own settings ask for?

W&B reads its variables, its settings file and netrc, for whichever server it is set to. Its answers are taken here;
only where the run has a setting of its own does that go first, and the start says so.
"""

from __future__ import annotations

import inspect
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from alexnet_dist.base.deadlines import call_with_deadline
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.text import escape_text
from alexnet_dist.tracking.wandb_sweep import find_trial

PROJECT = "alexnet_dist"  # the setting's default, which yields to W&B's own
ASK_SECONDS = 3.0  # for W&B's word on account and network
PROBE_SECONDS = 1.5
NAMES = ("entity", "name", "tags", "job_type", "notes")  # which W&B's variables have, too
_SECRETS = ("WANDB_API_KEY",)

# W&B's variables that never have an effect, and what goes before them.
_FIXED = {"WANDB_DIR": "output_dir", "WANDB_RUN_ID": "run.json", "WANDB_RESUME": "run.json"}
_QUIET = ("WANDB_CONSOLE", "WANDB_SAVE_CODE", "WANDB_DISABLE_CODE", "WANDB_DISABLE_GIT", "WANDB_HOST")


def choose_wandb_mode(requested: str) -> tuple[str, str]:
    """offline, online or disabled, and the reason.

    Raises:
        MachineError: W&B was asked for and is not installed, or cannot be imported.
    """
    if requested == "disabled":
        return "disabled", "asked for"
    try:
        import_wandb()
    except MachineError as error:
        if requested == "auto":
            return "disabled", str(error)
        raise
    if requested == "offline":
        return "offline", "asked for"
    try:
        answer = call_with_deadline(lambda: _ask_wandb(requested), ASK_SECONDS)
    except Exception as error:  # noqa: BLE001 (W&B must not end a run, whatever it raises)
        return "offline", explain(error)
    return answer or ("offline", f"W&B did not answer in {ASK_SECONDS:g} s")


def _ask_wandb(requested: str) -> tuple[str, str]:
    settings = read_settings()
    if requested == "auto":
        if settings.mode == "disabled" or _says_yes("WANDB_DISABLED"):
            return "disabled", "W&B's own settings"
        if settings.mode in ("offline", "dryrun"):
            return "offline", "W&B's own settings"
    host = urlsplit(settings.base_url).hostname
    if not _has_account(settings):
        return "offline", f"no W&B account for {host} on this machine (wandb login)"
    if _is_out_of_reach(settings):
        return "offline", f"{host} cannot be reached"
    return "online", "asked for" if requested == "online" else "account found"


def import_wandb() -> Any:
    """W&B's package, without its messages and without its reports about itself to its makers.

    Such a report waits for the server when the process ends, for half a minute.

    Raises:
        MachineError: it is not installed, or cannot be imported.
    """
    os.environ.setdefault("WANDB_SILENT", "true")  # both are read when the package is imported
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    return import_extra("wandb", "wandb")


def read_settings() -> Any:
    """W&B's settings as its variables and files give them.

    Raises:
        Exception: what W&B raises where one of them cannot be meant.
    """
    import_wandb()
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton().settings


def _has_account(settings: Any) -> bool:
    """Whether W&B finds a key, without asking the user for one."""
    import wandb

    if "prompt" not in inspect.signature(wandb.login).parameters:  # a version that would always ask
        return bool(wandb.api.api_key or settings.identity_token_file)
    settings.mode = "online"  # it is what is asked about; in another mode W&B does not look for a key
    return bool(wandb.login(prompt=False, verify=False))


def _is_out_of_reach(settings: Any) -> bool:
    """Whether nothing listens where W&B would connect: known in a moment, where W&B would try for longer.

    Behind a proxy this cannot be known; W&B's own attempt then decides.
    """
    named = [getattr(settings, name, None) for name in ("http_proxy", "https_proxy", "x_proxies")]
    if any([*named, *(getproxies().get(kind) for kind in ("http", "https", "all"))]):
        return False
    url = urlsplit(settings.base_url)
    try:
        port = url.port or {"http": 80}.get(url.scheme, 443)
        with socket.create_connection((url.hostname or "", port), timeout=PROBE_SECONDS):
            return False
    except OSError:
        return True


def settle_names(tracking: Mapping[str, Any], folder: Path, settings: Any) -> dict[str, Any]:
    """What a run is called and where it belongs: its own settings, or else W&B's, or else ours.

    Args:
        tracking: `TrackingConfig`, as a dict.
        folder: the run folder, which names the run.
        settings: W&B's.
    """
    project = tracking["project"] if tracking["project"] != PROJECT else settings.project or PROJECT
    return {
        "project": project,
        "entity": tracking["entity"] or settings.entity,
        "name": tracking["name"] or settings.run_name or escape_text(folder.name),
        "tags": list(tracking["tags"] or settings.run_tags or ()),
        "group": tracking["group"] or settings.run_group,
        "job_type": tracking["job_type"] or settings.run_job_type or "train",
        "notes": tracking["notes"] or settings.run_notes,
    }


def list_overruled(tracking: Mapping[str, Any]) -> list[str]:
    """W&B's variables that are set and have no effect, each with what goes before it."""
    if tracking["wandb"] == "disabled":
        asks = os.environ.get("WANDB_MODE", "disabled") != "disabled"
        return ["WANDB_MODE (tracking.wandb goes first)"] if asks else []
    own = {"group": "WANDB_RUN_GROUP", **{name: f"WANDB_{name.upper()}" for name in NAMES}}
    ours = {variable: f"tracking.{name}" for name, variable in own.items() if tracking[name]}
    if tracking["project"] != PROJECT:
        ours["WANDB_PROJECT"] = "tracking.project"
    if tracking["wandb"] != "auto":
        ours |= dict.fromkeys(("WANDB_MODE", "WANDB_DISABLED"), "tracking.wandb")
    fixed = {name: owner for name, owner in _FIXED.items() if name != "WANDB_RUN_ID" or find_trial() is None}
    ours |= fixed | dict.fromkeys(_QUIET, "tracking.privacy")
    return [f"{name} ({owner} goes first)" for name, owner in ours.items() if os.environ.get(name)]


def quiet_settings(init_seconds: float, privacy: str) -> Any:
    """W&B settings under which its files hold no command line, environment or console output.

    W&B's own collection of host, paths, user and command line stays off: it cannot be had in part. What `full` adds is
    given one by one.
    """
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=privacy != "full",
        init_timeout=init_seconds,
        reinit="create_new",  # a run of an earlier fold may still be on its way
        save_code=False,
        silent=True,
        x_disable_machine_info=privacy == "minimal",
        x_disable_meta=True,
        x_disable_stats=privacy == "minimal",
        x_save_requirements=False,
        x_stats_disk_paths=(),
        **(_describe_origin() if privacy == "full" else {"disable_git": True, "host": ""}),
    )


def _describe_origin() -> dict[str, Any]:
    """Host name, and commit and address of the repository in the current folder, without its user and password."""
    from wandb.sdk.lib.gitlib import GitRepo

    found: dict[str, Any] = {"host": socket.gethostname()}
    try:
        repository = GitRepo(lazy=False)
        address, commit = repository.remote_url, repository.last_commit
    except Exception:  # noqa: BLE001 (no git, no repository, or none with a commit)
        address = commit = None
    if commit is None:
        return {**found, "disable_git": True}
    return {**found, "git_commit": commit, "git_remote_url": address and _strip_user(address)}


def _strip_user(address: str) -> str:
    """An address without user and password, in either of git's forms: https://user:password@host/, user@host:path."""
    return re.sub(r"^(\w+://)?[^/]*@", r"\1", address)


def hide_places(value: Any, privacy: str) -> Any:
    """Nested settings as W&B gets them: the home folder is `~`; in `minimal` a path is its last name."""
    if isinstance(value, Mapping):
        return {key: hide_places(part, privacy) for key, part in value.items()}
    if isinstance(value, list):
        return [hide_places(part, privacy) for part in value]
    if not isinstance(value, str):
        return value
    home = str(Path.home())
    text = value if home == "/" else value.replace(home, "~")
    return Path(text).name if privacy == "minimal" and "/" in text else text


def explain(error: Exception) -> str:
    """An error of W&B's in one line, without the values it concerns: they may be secret."""
    details: Callable[..., list[Any]] | None = getattr(error, "errors", None)
    if callable(details):  # pydantic's: a setting of W&B's that cannot be meant
        parts = [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in details()]
        text = f"W&B's settings: {'; '.join(parts)}"
    else:
        text = f"{type(error).__name__}: {error}"
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return " ".join(text.split())


def _says_yes(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")
