"""torchrun's and Accelerate's launchers, which flatten exit codes to 1, as `alexnet-dist launch` runs them.

They start and watch the workers. Here is what they lack: the job ends with the exit code of the worker that failed
first, its line is the last one printed, and a mistake that no restart can mend is not repeated.

    python -m alexnet_dist.parallel.processes.launcher torch.distributed.run WORDS...
    python -m alexnet_dist.parallel.processes.launcher accelerate.commands.launch WORDS...
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, NoReturn

import psutil
import torch
import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError, c10d_rendezvous_backend
from torch.distributed.launcher import api

from alexnet_dist.base.ending import TAKES_LAST_LINE, end_in_order, print_line
from alexnet_dist.base.errors import AlexNetDistError, MachineError, UsageError, describe_stop
from alexnet_dist.base.signals import SIGNALS, ending_at_once
from alexnet_dist.parallel.processes.meeting import explain_meeting
from alexnet_dist.parallel.processes.network import check_port_is_free, is_own_address, resolve_host
from alexnet_dist.parallel.processes.waiting import NOTE_SECONDS

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
LASTING = (2, 3, 4, 6, 7)  # what the same start would end with again
SAVE_SECONDS = "120"  # for workers that were told to stop
COME_SECONDS = 300  # for all machines to come: nodes of a cluster do not start together
ELASTIC_RESTARTS = 10
DEFAULT_PORT = 29500
REMEDY = "start each machine with a number of its own, 0 at that address, and let its firewall pass that port"


# -- how a job ended --------------------------------------------------------------------------------------------------


class WorkersStopped(SignalException):
    """A signal came to the launcher, and its workers have ended.

    Args:
        stop: torch's own word for it.
        failures: of the workers that did not end with 0, by rank.
    """

    def __init__(self, stop: SignalException, failures: dict[int, ProcessFailure]) -> None:
        super().__init__(str(stop), stop.sigval)
        self.failures = failures


def judge(failures: dict[int, ProcessFailure]) -> tuple[int, str]:
    """The exit code of a job, and its last line.

    Args:
        failures: by rank, those that ended first before those that were ended then.
    """
    first_rank, first = next(iter(failures.items()))
    told = {rank: line for rank, failure in failures.items() if (line := _find_line(failure))}
    if first.exitcode > 0 and first_rank not in told:  # another one speaks for it
        first_rank = min(told, key=lambda rank: failures[rank].timestamp, default=first_rank)
        first = failures[first_rank]
    code = first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    if first_rank in told:
        return code, told[first_rank]
    if code in STOPPED:
        return code, describe_stop(code - 128)
    # Of those that remain one may say whom it lost; that it was ended then is no cause.
    errors = [line for line in told.values() if line.startswith("error: ")]
    return code, errors[0] if errors else f"error: {_describe_end(first_rank, first)}"


def _find_line(failure: ProcessFailure) -> str:
    message = failure.error_file_data.get("message")
    return str(message.get("message", "")) if isinstance(message, dict) else ""


def _describe_end(rank: int, failure: ProcessFailure) -> MachineError:
    where = f"process {failure.pid}"
    if failure.exitcode < 0:
        name = failure.signal_name()
        remedy = "where memory ran out, the system's log says so; start again, and the run goes on"
        return MachineError(f"rank {rank} was ended by {name}", where=where, remedy=remedy)
    remedy = "see its message above"
    return MachineError(f"rank {rank} ended with exit code {failure.exitcode}", where=where, remedy=remedy)


class Agent(LocalElasticAgent):
    """torch's agent, which starts the workers of a machine, with an eye on what a restart can mend.

    Args:
        is_elastic: machines may come and go. One that is told to go stops the workers of all; those that stay go on.
        machines: of the job, at most.
        arguments: of torch's agent.
    """

    def __init__(self, *arguments: Any, is_elastic: bool = False, machines: int = 1, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._is_elastic, self._machines, self._is_said = is_elastic, machines, False

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        try:
            result: RunResult = super().run(role)
        except SignalException as stop:
            if self._pcontext is None:  # there are no workers, or none again yet
                raise
            raise WorkersStopped(stop, self._list_failures()) from None
        return result

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        have_come = threading.Event()
        if self._machines > 1:
            threading.Thread(target=_tell_waiting, args=(have_come,), name="rendezvous", daemon=True).start()
        try:
            super()._rendezvous(worker_group)
        finally:
            have_come.set()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            code, line = judge(result.failures)
            if code in STOPPED and self._is_elastic:
                self._remaining_restarts += 1  # a machine that goes is no failure
            elif code in (*LASTING, *STOPPED):
                self._remaining_restarts = 0
            self._is_said = self._remaining_restarts > 0
            if self._is_said:
                print_line(f"{line}\nstarting the workers again, {self._remaining_restarts} restarts left")
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if not self._is_said:
            print_line("another machine has come: the workers save, and all start again together")
        self._is_said = False
        super()._restart_workers(worker_group)

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(timeout=self._shutdown_timeout)  # torch gives them 30 seconds to save, whatever it was told
        self._pcontext = None  # how they ended is no answer to a signal that comes before the next ones start

    def _list_failures(self) -> dict[int, ProcessFailure]:
        context = self._pcontext
        handlers = getattr(context, "subprocess_handlers", {})
        failures = {}
        for local_rank, handler in handlers.items():
            code = handler.proc.poll()
            if context is not None and code:
                rank = self._worker_group.workers[local_rank].global_rank
                failures[rank] = ProcessFailure(local_rank, handler.proc.pid, code, context.error_files[local_rank])
        return failures


def _tell_waiting(have_come: threading.Event) -> None:
    waited = 0.0
    while not have_come.wait(NOTE_SECONDS):
        waited += NOTE_SECONDS
        print_line(f"waiting for the other machines since {waited:.0f} s")


# -- the launchers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where launchers meet.

    Args:
        endpoint: host and port; "" on one machine.
        advice: what is wrong with it, where that is known.
    """

    endpoint: str = ""
    advice: str = ""

    @contextlib.contextmanager
    def meeting_named(self) -> Iterator[None]:
        """Within, launchers meet; what keeps them apart is one line.

        Raises:
            MachineError: they cannot meet.
        """
        try:
            yield
        except (RendezvousError, dist.DistError, ConnectionError, TimeoutError) as error:
            raise explain_meeting(error, self.endpoint or "on this machine", self.advice or REMEDY) from error


def main(argv: Sequence[str]) -> int:
    """Run a launcher, by its module's name, to the end of its workers; their exit code."""
    name, words = argv[0], list(argv[1:])
    os.environ[TAKES_LAST_LINE] = "1"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SAVE_SECONDS)
    if os.environ.get("TORCH_CPP_LOG_LEVEL", "FATAL") == "FATAL":
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # of workers, which may have errors of NCCL's to tell
    if "--debug" not in words:
        logging.disable(logging.CRITICAL)  # 40 lines of torch's for a worker that has ended
    try:
        LAUNCHERS[name](words)
    except ChildFailedError as failed:
        code, line = judge(failed.failures)
    except WorkersStopped as stopped:
        code, line = judge(stopped.failures) if stopped.failures else (0, "")
    except SignalException as stopped:  # before there were workers
        code, line = 128 + stopped.sigval, describe_stop(stopped.sigval)
    except subprocess.CalledProcessError as failed:  # of Accelerate's single process, which speaks for itself
        code, line = failed.returncode if failed.returncode > 0 else 128 - failed.returncode, ""
    except AlexNetDistError as error:
        code, line = error.exit_code, f"error: {error}"
    except OSError as error:
        code, line = MachineError.exit_code, f"error: {MachineError('the launcher cannot start', why=str(error))}"
    else:
        code, line = 0, ""
    if line:
        print_line(line)
    return code


def run_torch(words: list[str]) -> None:
    """torchrun, with what it leaves to its user settled: the GPUs, a free port, machines that come and go."""
    from torch.distributed import run as torchrun

    os.environ.setdefault("PET_NPROC_PER_NODE", "gpu" if torch_sees_gpus() else "1")
    options = _parse(torchrun.get_args_parser(), words)
    try:
        fewest, most = torchrun.parse_min_max_nnodes(options.nnodes)
    except (ValueError, RuntimeError):
        raise UsageError(f"--nnodes is {options.nnodes}", remedy="give a number, or the range MIN:MAX") from None
    place = _settle_torch(options, words, fewest, most)
    os.environ |= {"PET_NNODES": options.nnodes, "PET_NPROC_PER_NODE": options.nproc_per_node}  # for the workers' guard
    api.LocalElasticAgent = partial(Agent, is_elastic=fewest < most, machines=most)  # type: ignore[attr-defined,assignment]
    with _mistakes_are_usage(), place.meeting_named():
        torchrun.run(options)  # type: ignore[no-untyped-call]


def _settle_torch(options: argparse.Namespace, words: Sequence[str], fewest: int, most: int) -> Place:
    """Settle where the machines meet, and how often they do."""
    says_address = "PET_MASTER_ADDR" in os.environ or _says(words, "master_addr")
    is_static = options.rdzv_backend == "static" and not options.rdzv_endpoint
    if most == 1:
        # No port that two jobs of one machine could both want.
        options.standalone = options.standalone or (is_static and options.master_port is None and not says_address)
    elif is_static and not says_address:
        where, remedy = f"--nnodes {options.nnodes}", "give --master_addr, a name or an address of the first machine"
        raise UsageError("the machines do not know where to meet", where=where, remedy=remedy)
    if options.standalone:
        return Place()
    host = bracket(options.master_addr)
    options.master_addr = host
    port = options.master_port or DEFAULT_PORT
    if fewest < most:
        if is_static:
            options.rdzv_backend, options.rdzv_endpoint = "c10d", f"{host}:{port}"
        if options.max_restarts == 0 and "PET_MAX_RESTARTS" not in os.environ and not _says(words, "max_restarts"):
            options.max_restarts = ELASTIC_RESTARTS
        # Each round of machines gets a store of its own: under the launcher's, keys count restarts, which differ.
        os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    elif is_static:
        options.master_port = port
        if "timeout" not in options.rdzv_conf:  # torch waits a quarter of an hour
            options.rdzv_conf = ",".join(filter(None, (options.rdzv_conf, f"timeout={COME_SECONDS}")))
    endpoint = options.rdzv_endpoint or f"{host}:{port}"
    where = "--rdzv_endpoint" if options.rdzv_endpoint and not is_static else "--master_addr"
    addresses = check_endpoint(endpoint, where)
    # torch looks for the address among those of this machine's name, which is a loopback's on many.
    is_here = any(map(is_own_address, addresses))
    c10d_rendezvous_backend._matches_machine_hostname = lambda host: is_here  # type: ignore[attr-defined]
    if options.rdzv_backend == "static" and options.node_rank == 0:
        check_port_is_free(port, "--master_port")
        return Place(endpoint, check_first_machine(addresses, where, "--node_rank 0"))
    return Place(endpoint)


def run_accelerate(words: list[str]) -> None:
    """`accelerate launch`."""
    from accelerate.commands import launch as starter
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    options, place = _parse(starter.launch_command_parser(), words), Place()
    with _mistakes_are_usage():
        file = options.config_file or (default_config_file if os.path.isfile(default_config_file) else None)
        told = load_config_from_file(file) if file is not None and not options.cpu else None
        machines, host, port, rank = (
            value if (value := getattr(options, name)) is not None else getattr(told, name, None)
            for name in ("num_machines", "main_process_ip", "main_process_port", "machine_rank")
        )
        if (machines or 1) > 1:
            if host is None:
                remedy = "give --main_process_ip, a name or an address of the first machine"
                raise UsageError("the machines do not know where to meet", where=f"{machines} machines", remedy=remedy)
            options.main_process_ip = bracket(host)
            options.main_process_port = port if port is not None else DEFAULT_PORT
            addresses, advice = check_endpoint(options.main_process_ip, "--main_process_ip"), ""
            if int(rank or 0) == 0:
                check_port_is_free(int(options.main_process_port), "--main_process_port")
                advice = check_first_machine(addresses, "--main_process_ip", "--machine_rank 0")
            place = Place(f"{options.main_process_ip}:{options.main_process_port}", advice)
        api.LocalElasticAgent = partial(Agent, machines=machines or 1)  # type: ignore[attr-defined,assignment]
        starter.simple_launcher = partial(_start_single, starter.simple_launcher)
        with place.meeting_named():
            starter.launch_command(options)


def _start_single(start: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> None:
    """Accelerate's way to start a single process, which has no agent of torch's to take signals."""
    for number in SIGNALS:
        signal.signal(number, _pass_on)
    start(options)


def _pass_on(number: int, frame: FrameType | None) -> None:
    """A signal is for the process that Accelerate started and waits for; before there is one, it ends the launcher."""
    children = psutil.Process().children()
    if not children:
        raise SignalException(f"signal {number}", signal.Signals(number))
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.send_signal(number)


LAUNCHERS: dict[str, Callable[[list[str]], None]] = {
    "torch.distributed.run": run_torch,
    "accelerate.commands.launch": run_accelerate,
}


def torch_sees_gpus() -> bool:
    """Whether there is a GPU to start a process on."""
    return torch.cuda.device_count() > 0


def bracket(host: str) -> str:
    """An address as it stands before a port: those of IPv6 in brackets."""
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def check_endpoint(endpoint: str, where: str) -> list[str]:
    """The addresses of a host. One that no name server knows is refused before torch tries it for minutes."""
    has_port = endpoint.rpartition(":")[2].isdigit() and (endpoint.count(":") == 1 or "]:" in endpoint)
    return resolve_host(endpoint.rpartition(":")[0] if has_port else endpoint, where)


def check_first_machine(addresses: Sequence[str], where: str, number: str) -> str:
    """Say, and return, that the others will look for this machine elsewhere; "" where they will not.

    It is no error: what stands between machines may pass on what is sent to another address.

    Args:
        addresses: at which they will look.
        where: the option that says so.
        number: the option that makes this machine the first.
    """
    if any(map(is_own_address, addresses)):
        return ""
    said = f"{number} makes this machine the first, and {addresses[0]} ({where}) is none of its addresses"
    print_line(said)
    return said


def _says(words: Sequence[str], option: str) -> bool:
    return any(word.partition("=")[0].lstrip("-").replace("-", "_") == option for word in words if word[:1] == "-")


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    def refuse(message: str) -> NoReturn:
        remedy = "alexnet-dist launch --help shows examples"
        raise UsageError(message, where="command line of the launcher", remedy=remedy)

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(words)


@contextlib.contextmanager
def _mistakes_are_usage() -> Any:
    """What torch and Accelerate raise of options that they cannot mean, as a line."""
    try:
        yield
    except (ValueError, AssertionError) as error:
        raise UsageError(" ".join(str(error).split()), where="command line of the launcher") from error


if __name__ == "__main__":
    with ending_at_once():
        end_in_order(main(sys.argv[1:]))
