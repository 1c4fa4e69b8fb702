"""Functions in C, built by this machine's own compiler at their first use and kept in the user's cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import subprocess
import tempfile
from pathlib import Path

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.durable import replacing
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import find_c_compiler, list_cpu_features
from alexnet_dist.base.places import find_cache_dir

# For this processor, in its longest vectors: the first of these that the compiler knows.
OWN_PROCESSOR = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")  # no math.h rule keeps loops from vectors
SECONDS = 120.0  # that a compiler may take


@functools.cache
def load_c_library(source: Path) -> ctypes.CDLL:
    """The functions of a C file; built unless this processor's are in the cache folder.

    Raises:
        MachineError: there is no C compiler, it fails, or what it made cannot be kept or loaded.
    """
    compiler, what = find_c_compiler(), f"{source.name} cannot be compiled"
    if compiler is None:
        raise MachineError(what, why="there is no C compiler")
    code = source.read_bytes()
    facts = "\n".join([platform.platform(), *list_cpu_features(), compiler, *map(str, OWN_PROCESSOR), *FLAGS])
    key = hashlib.sha256(code + facts.encode()).hexdigest()[:16]
    built = find_cache_dir(None) / "c" / f"{source.stem}-{key}.so"
    try:
        if not built.exists():
            made = _compile(compiler, source)
            built.parent.mkdir(parents=True, exist_ok=True)
            with replacing(built) as file:
                file.write(made)
        return ctypes.CDLL(str(built))
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.strip()]
        raise MachineError(what, why=next((line for line in said if "error" in line), (*said, compiler)[0])) from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(what, why=f"{compiler} takes more than {SECONDS:.0f} s") from error
    except OSError as error:
        raise MachineError(what, why=name_reason(error), where=str(built)) from error


def _compile(compiler: str, source: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "library.so"
        for own in OWN_PROCESSOR:
            words = [compiler, *own, *FLAGS, "-o", str(made), str(source), "-lm"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
            if done.returncode == 0:
                break
        done.check_returncode()
        return made.read_bytes()
