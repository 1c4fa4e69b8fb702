"""Packages that only some uses need: missing is not broken, and each is said in one line with its own remedy."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType, TracebackType
from typing import Any

from alexnet_dist.base.errors import MachineError


def import_extra(name: str, extra: str) -> Any:
    """A module of a package that is not needed by everyone.

    Args:
        name: of the module ("matplotlib.figure").
        extra: of ours that installs the package; for the remedy.

    Raises:
        MachineError: the package is not installed, or it is and importing it fails; the line says which, and why.
    """
    package = name.partition(".")[0]
    if not is_installed(package):
        raise MachineError(f"{package} is not installed", remedy=f"pip install 'alexnet_dist[{extra}]'")
    return import_installed(name)


def import_installed(name: str) -> ModuleType:
    """A module of a package that is there.

    Raises:
        MachineError: importing it fails; the line has the reason.
    """
    try:
        return importlib.import_module(name)
    except MemoryError:
        raise
    except Exception as error:  # a package built for another numpy, or without its library, raises whatever it likes
        raise _say_broken(name.partition(".")[0], error) from error


def explain_import_error(error: Exception) -> MachineError | None:
    """The line for a package that everyone needs and that cannot be imported; None where the fault is ours."""
    if not isinstance(error, ImportError):
        package = _find_imported(error.__traceback__)
        return _say_broken(package, error) if package else None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    importer = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    package = (error.name or importer).partition(".")[0]
    if package == __name__.partition(".")[0]:
        return None
    if isinstance(error, ModuleNotFoundError) and not is_installed(package):
        return MachineError(f"{package} is not installed", remedy=f"pip install {package}")
    return _say_broken(package, error)


def _find_imported(trace: TracebackType | None) -> str:
    """The package of others whose own module was being imported when an error came; "" if there was none."""
    package = ""
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "<module>":
            package = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
        trace = trace.tb_next
    return "" if package == __name__.partition(".")[0] else package


def _say_broken(package: str, error: Exception) -> MachineError:
    why = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    text = str(error).lower()
    variables = [  # a ValueError for TORCH_LOGS=x, an OSError for TORCHINDUCTOR_CACHE_DIR=/x
        name
        for name, value in os.environ.items()
        if name.startswith(package.upper()) and (name.lower() in text or (value and value.lower() in text))
    ]
    remedy = f"mend it, or install it again: pip install --force-reinstall {package}"
    if variables and not isinstance(error, ImportError):
        remedy = f"unset {', '.join(sorted(variables))}, if that is at fault, or {remedy}"
    return MachineError(f"{package} is installed and cannot be imported", why=why, remedy=remedy)


def is_installed(package: str) -> bool:
    """Whether a package is there; nothing of it is imported."""
    return importlib.util.find_spec(package) is not None
