"""What machine this is, and which versions run on it: for run.json and the benchmarks."""

from __future__ import annotations

import ctypes
import getpass
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import cores_of_srun

if TYPE_CHECKING:
    import torch

REPORTED_PACKAGES = (
    *("alexnet_dist", "torch", "torchvision", "triton", "accelerate", "numpy", "pillow", "safetensors", "wandb"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
)
PACKAGE = Path(__file__).resolve().parents[1]
_COMMIT = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h: blocks below are not given back to the kernel


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_of_cores(processes_here: int) -> int:
    """The cores of one of several like processes on this machine.

    SLURM may have bound each task to its own, where it started one for each process and no launcher.
    """
    cores = available_cores()
    is_bound = cores < cores_of_srun(processes_here)
    return cores if is_bound else max(1, cores // processes_here)


def find_c_compiler() -> str | None:
    """The path of CC, or of cc, gcc or clang; None where there is none."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)


@cache
def can_build_kernels() -> bool:
    """Whether Triton is installed and finds the C compiler that it needs to start its kernels."""
    return find_spec("triton") is not None and find_c_compiler() is not None


def check_compiler(on_gpu: bool) -> None:
    """Refuse torch.compile where its compilers are missing, before a step is begun.

    Raises:
        MachineError: no C++ compiler for the CPU, or no C compiler or Triton for a GPU.
    """
    usual = "clang++" if platform.system() == "Darwin" else "g++"
    found = can_build_kernels() if on_gpu else shutil.which(os.environ.get("CXX", usual)) is not None
    if not found:
        missing = "Triton with a C compiler" if on_gpu else f"a C++ compiler ({os.environ.get('CXX', usual)})"
        raise MachineError(f"compile needs {missing}", why="there is none", remedy="install it, or set --compile false")


def explain_failed_compiler(error: Exception) -> MachineError | None:
    """The line for an error of torch.compile's compilers; None for any other error."""
    if "BackendCompilerFailed" not in {kind.__name__ for kind in type(error).__mro__}:  # torch's, without its import
        return None
    inner = getattr(error, "inner_exception", error)
    said = [line.strip() for line in str(getattr(inner, "output", inner)).splitlines() if line.strip()]
    why = next((line for line in said if "error" in line.lower()), next(iter(said), type(inner).__name__))
    remedy = "try again with more memory and fewer programs beside it, or set --compile false"
    return MachineError("torch.compile cannot compile the network", why=why, remedy=remedy)


def find_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" is the GPU where there is one.

    Raises:
        MachineError: a GPU where there is none.
        ValueError: no such name.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"no device {device!r}; there are auto, cpu and cuda") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise MachineError("no CUDA device", why=f"device is {device}", remedy="set --device cpu or auto")
    return found


def settle_home() -> None:
    """Give a user whom the system does not know a name and a home folder: a private one among the temporary ones.

    Containers run with such numbers. Libraries look for both (torch.compile, W&B), and keep files in `~` as it is
    written where there is no home.

    Raises:
        MachineError: the folder cannot be made, or is not private.
    """
    if sys.platform == "win32":
        return
    try:
        Path.home()
        getpass.getuser()
        return
    except (RuntimeError, KeyError, OSError):
        os.environ.setdefault("LOGNAME", f"user-{os.getuid()}")
    if "HOME" in os.environ:
        return
    folder = Path(tempfile.gettempdir()) / f"alexnet_dist-{os.getuid()}"
    remedy = "set HOME to a folder that can be written"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise MachineError("no home folder", where=str(folder), why=name_reason(error), remedy=remedy) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise MachineError("no home folder", where=str(folder), why="others may write there", remedy=remedy)
    os.environ["HOME"] = str(folder)


def tune_allocator() -> None:
    """Let PyTorch keep the memory of large tensors, in large pages (Linux, glibc); call it before PyTorch is imported.

    An update allocates and frees hundreds of megabytes for gradients and half-precision weights. Given back to the
    kernel and asked for again, in pages of 4 KiB, they cost a quarter of a CPU's time for an update of 16 images.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is not None:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, 2**31 - 1)


def measure_memory(device: torch.device) -> dict[str, float]:
    """Memory of this process in MiB: on a GPU the most that its tensors have taken there, else what is resident now."""
    import psutil
    import torch

    if device.type == "cuda":
        return {"gpu_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20, 1)}
    return {"resident_memory_mib": round(psutil.Process().memory_info().rss / 2**20, 1)}


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs. No host name and no path: the text may be published."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    features = list_cpu_features()
    matrix_units = [name for name in ("amx_tile", "avx512_bf16", "avx512f", "avx2") if name in features]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _read_line("/proc/cpuinfo", "model name") or platform.processor(),
        "cpu_features": matrix_units,
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
    }


def list_cpu_features() -> list[str]:
    """What the processor can do, in the kernel's words; empty where it does not say."""
    return (_read_line("/proc/cpuinfo", "flags") or _read_line("/proc/cpuinfo", "Features")).split()


def list_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def find_git_commit(package: Path = PACKAGE) -> str | None:
    """The commit of the checkout that the package runs from, None outside a checkout of this project.

    Followed by "+" if files were changed since, by "?" if that cannot be told. An installed package lies in whatever
    repository its environment does; that is not its own. HEAD is read here, and git is run without any configuration
    of the repository or the user, because such a configuration may name commands for git to execute.

    Args:
        package: the package's folder; its parent must hold our pyproject.toml and .git.
    """
    root = package.parent
    try:
        if tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"] != package.name:
            return None
        folder = _find_git_folder(root)
        shared = (folder / _read_text(folder / "commondir", ".")).resolve()  # of all worktrees
        commit = _read_head(folder, shared)
        return commit and commit + _mark_changes(root, folder, shared, commit)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _find_git_folder(root: Path) -> Path:
    """.git, or the folder that a worktree's file of this name gives."""
    if (root / ".git").is_dir():
        return root / ".git"
    return root / _read_text(root / ".git").removeprefix("gitdir: ")


def _read_head(folder: Path, shared: Path) -> str | None:
    text = _read_text(folder / "HEAD")
    for _ in range(5):  # a reference may name another one
        if _COMMIT.fullmatch(text):
            return text
        name = text.removeprefix("ref: ")
        if name == text or not name.startswith("refs/") or ".." in name:
            return None
        text = _read_text(folder / name, "") or _read_text(shared / name, "") or _find_packed(shared, name)
    return None


def _find_packed(shared: Path, name: str) -> str:
    lines = _read_text(shared / "packed-refs", "").splitlines()
    return next((line.split()[0] for line in lines if line.endswith(f" {name}")), "")


def _mark_changes(root: Path, folder: Path, shared: Path, commit: str) -> str:
    """ "+" if tracked files differ from the commit, "?" if git cannot tell; git sees a configuration of ours alone."""
    version, kind = (1, "sha256") if len(commit) == 64 else (0, "sha1")
    config = f"[core]\nrepositoryformatversion = {version}\nbare = false\n"
    with tempfile.TemporaryDirectory() as name:
        ours = Path(name)
        (ours / "refs").mkdir()
        (ours / "HEAD").write_text(f"{commit}\n", encoding="utf-8")
        (ours / "config").write_text(config + (f"[extensions]\nobjectformat = {kind}\n" if version else ""), "utf-8")
        places = {"GIT_DIR": ours, "GIT_WORK_TREE": root, "GIT_INDEX_FILE": folder / "index"}
        places |= {"GIT_OBJECT_DIRECTORY": shared / "objects", "GIT_CONFIG_GLOBAL": Path(os.devnull), "HOME": ours}
        environment = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_OPTIONAL_LOCKS": "0"}
        environment["PATH"] = os.environ.get("PATH", os.defpath)
        words = ["git", "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all"]
        environment |= {key: str(path) for key, path in places.items()}
        try:
            done = subprocess.run(words, cwd=root, env=environment, capture_output=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            return "?"
    return "+" if done.stdout.strip() else ""


def _read_text(path: Path, default: str | None = None) -> str:
    if default is not None and not path.is_file():
        return default
    return path.read_text(encoding="utf-8").strip()


def _read_line(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
