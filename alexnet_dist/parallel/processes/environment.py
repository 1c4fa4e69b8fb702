"""The environment never changes the arithmetic: what becomes of each variable that Accelerate, torch or MPI would obey.

A variable is honored as a setting of ours (ACCELERATE_USE_CPU), refused by its name, or without effect, because
`build_accelerator` hands Accelerate an argument in its place or builds nothing that would read it (FSDP_*,
MEGATRON_LM_*, PARALLELISM_CONFIG_*, ACCELERATE_DEEPSPEED_*). What is malformed is refused before anything waits for it.
No torch here.
"""

from __future__ import annotations

import os

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import ranks_of_srun, read_number, world_size_from_environment

# The smallest value of what must be a whole number.
NUMBERS = {
    **dict.fromkeys(("RANK", "LOCAL_RANK", "GROUP_RANK", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"), 0),
    **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), 1),
}
LARGEST_PORT = 65535
MEETING = ("MASTER_ADDR", "MASTER_PORT")
# What each MPI calls RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE: Open MPI; MPICH and Intel MPI; MVAPICH.
TORCH_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
MPI_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
)
NUMBERS |= {name: int("SIZE" in name or "NRANKS" in name) for names in MPI_NAMES for name in names}
NUMBERS |= {"SLURM_PROCID": 0, "SLURM_LOCALID": 0, "SLURM_NODEID": 0, "SLURM_STEP_NUM_TASKS": 1}

YES, NO = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")  # as Accelerate reads them
CPU = "ACCELERATE_USE_CPU"
# Accelerate fails where these are neither yes nor no, and besides the first none changes what is computed here.
FLAGS = (
    *(CPU, "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY", "ACCELERATE_ENABLE_RICH", "FORK_LAUNCHED"),
    *("ACCELERATE_DYNAMO_USE_FULLGRAPH", "ACCELERATE_DYNAMO_USE_DYNAMIC", "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"),
    "USE_TORCH_XLA",
)
# Values (in lower case) that change nothing, and what to do about any other one.
NOT_OURS = (*NO, "")
REFUSED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": (("1",), "unset it; train.micro_batch_size says how a batch is cut"),
    "ACCELERATE_DYNAMO_BACKEND": (("no", ""), "unset it; --compile true compiles the network"),
    "ACCELERATE_TORCH_DEVICE": (("cpu",), "unset it; --device says where to compute"),
    "ACCELERATE_FP8_BACKEND": (("no",), "unset it; precision has no fp8"),
    "ACCELERATE_USE_DEEPSPEED": (NOT_OURS, "leave DeepSpeed out; parallel.strategy says how to share the work"),
    "ACCELERATE_USE_FSDP": (NOT_OURS, "leave FSDP out; parallel.strategy says how to share the work"),
    "ACCELERATE_USE_MEGATRON_LM": (NOT_OURS, "leave Megatron-LM out; parallel.strategy says how to share the work"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (NOT_OURS, "unset it; parallel.strategy says how to share the work"),
    "ACCELERATE_USE_SAGEMAKER": (NOT_OURS, "unset it; SageMaker's own data parallelism is not used here"),
    "ONEDNN_DEFAULT_FPMATH_MODE": (("strict", ""), "unset it; --precision says what to compute in"),
    "DNNL_DEFAULT_FPMATH_MODE": (("strict", ""), "unset it; --precision says what to compute in"),
}


def is_cpu_wanted() -> bool:
    """Whether ACCELERATE_USE_CPU, or Ray's way to say it, keeps this process off the GPUs."""
    return os.environ.get(CPU, "").lower() in YES or os.environ.get("ACCELERATE_TORCH_DEVICE") == "cpu"


def check_environment() -> None:
    """Refuse an environment that would change what is computed, or make torch wait for processes that nobody starts.

    The ranks of tasks of `srun`, and those that an MPI gave with an address to meet at, become those that torch reads.

    Raises:
        MachineError: a variable that is refused or malformed, or a launcher's variables that contradict one another.
    """
    for name, (harmless, remedy) in REFUSED.items():
        if os.environ.get(name, harmless[0]).lower() not in harmless:
            raise MachineError(f"{name} is {os.environ[name]}", where="environment", remedy=remedy)
    for name in FLAGS:
        if os.environ.get(name, "no").lower() not in (*YES, *NO):
            raise _malformed(name, "yes or no")
    for name, least in NUMBERS.items():
        if name in os.environ and read_number(name, -1) < least:
            raise _malformed(name, f"a whole number from {least}")
    if read_number("MASTER_PORT", 1) > LARGEST_PORT:
        raise _malformed("MASTER_PORT", f"a port up to {LARGEST_PORT}")
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        _adopt_ranks_of_srun()
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        _adopt_mpi_ranks()
    _check_whole()
    _check_order()


def _malformed(name: str, wanted: str) -> MachineError:
    remedy = "unset it, or start with accelerate launch"
    return MachineError(f"{name} is {os.environ[name]!r}", where="environment", why=f"expected {wanted}", remedy=remedy)


def _adopt_ranks_of_srun() -> None:
    """Give torch the ranks that SLURM gave. An address that somebody has exported stands.

    mpirun may have used srun to start its own helpers, whose ranks are not those of the processes: it then says others.
    """
    ranks = ranks_of_srun()
    theirs = {name: ranks.get(ours) for names in MPI_NAMES for name, ours in zip(names, TORCH_NAMES, strict=True)}
    if any(os.environ.get(name, value) != value for name, value in theirs.items()):
        return
    os.environ.update({name: value for name, value in ranks.items() if name not in MEETING or name not in os.environ})


def _adopt_mpi_ranks() -> None:
    """Give torch the ranks that an MPI gave, so that its processes are one job and not strangers."""
    for names in MPI_NAMES:
        size = read_number(names[1], 1)
        if size == 1:
            continue
        missing = [name for name in (names[0], *MEETING) if name not in os.environ]
        if missing:
            raise MachineError(
                f"1 process of {size} that cannot meet the others",
                where=f"{names[1]}={size}",
                why=f"{', '.join(missing)} not set",
                remedy=f"start with accelerate launch --multi_gpu --num_processes {size}, or set them",
            )
        ranks = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        ranks |= {ours: os.environ[name] for ours, name in zip(TORCH_NAMES, names, strict=True) if name in os.environ}
        os.environ.update(ranks)
        return


def _check_whole() -> None:
    """A process of several, and one that says which of its machine it is, must say which of all and where they meet."""
    needed = ["RANK", "WORLD_SIZE"]
    if "LOCAL_RANK" in os.environ or world_size_from_environment() > 1:
        needed += MEETING
    present = [name for name in TORCH_NAMES[:3] if os.environ.get(name)]
    missing = [name for name in needed if not os.environ.get(name)]
    if present and missing:
        raise MachineError(
            "the launcher's environment is incomplete",
            why=f"{', '.join(present)} set, {', '.join(missing)} not",
            remedy="start with accelerate launch, or unset them",
            is_local="WORLD_SIZE" in missing,  # there may be no rank 0 to say it
        )


def _check_order() -> None:
    for rank, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE"), ("LOCAL_WORLD_SIZE", "WORLD_SIZE")):
        most = read_number(size, 1) - (size == "LOCAL_WORLD_SIZE" or rank == "RANK")
        if size in os.environ and read_number(rank, 0) > most:
            raise MachineError(
                f"{rank} is {os.environ[rank]} and {size} is {os.environ[size]}",
                where="environment",
                why=f"{rank} is at most {most} then",
                remedy="start with accelerate launch, or unset them",
                is_local=rank == "RANK",  # there may be no rank 0 to say it
            )
