"""Training on a Ray cluster: Ray places workers and starts them again, the run folder and its checkpoints stay ours.

The driver, which is the program that a user starts, and the workers meet at a desk, a small actor: there the driver
leaves the wish to stop, and a worker its error, with the word whether a new start may help. Ray knows neither of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alexnet_dist.base.errors import AlexNetDistError, InterruptedRunError, MachineError
from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.signals import StopRequest
from alexnet_dist.settings.schema import Config

ASK_SECONDS = 1.0  # between two looks at the desk
LOOK_SECONDS = "0.2"  # between two looks of Ray at its workers


@dataclass(frozen=True)
class Workers:
    """What Ray is asked for.

    Args:
        least, most: how many of them; Ray takes as many between these as it finds room for.
        cpus: cores for each.
        on_gpu: whether each has a GPU.
        max_failures: so often workers are started again; -1 = for ever.
        waits: whether a cluster that is too small may grow; else it is refused.
    """

    least: int
    most: int
    cpus: int = 1
    on_gpu: bool = False
    max_failures: int = 3
    waits: bool = False


class Desk:
    """The actor at which the driver and the workers meet."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._final: AlexNetDistError | None = None
        self._last: AlexNetDistError | None = None

    def ask_to_stop(self, number: int) -> None:
        """The driver got this signal."""
        self._signal = number

    def find_signal(self) -> int | None:
        """The signal that the driver got."""
        return self._signal

    def tell_error(self, error: AlexNetDistError, is_final: bool) -> None:
        """A worker met an error: one that it would meet again, of which the first counts, or one that may pass."""
        if is_final:
            self._final = self._final or error
        self._last = error

    def find_final_error(self) -> AlexNetDistError | None:
        """The error for which there is no use in starting again."""
        return self._final

    def find_last_error(self) -> AlexNetDistError | None:
        """The last error that a worker told of."""
        return self._last


def train_on_ray(config: Config, workers: Workers, address: str | None = None) -> dict[str, Any]:
    """Train on workers of a Ray cluster, or go on with the run in `output_dir`; what summary.json holds.

    Args:
        config: the settings; output_dir must be set, and be a place that all machines see.
        workers: what Ray is asked for.
        address: of the cluster; None = that of RAY_ADDRESS, or a new cluster on this machine.

    Raises:
        AlexNetDistError: what a worker met, or a cluster that is not there, is too small, or lost workers too often.
    """
    ray = import_extra("ray", "ray")
    folder = Path(config.output_dir or "run").absolute()
    config = replace(config, output_dir=str(folder))
    stop = StopRequest()
    with _joined(ray, address):
        stop.listen()  # Ray takes SIGTERM when it joins
        if not workers.waits:
            _check_room(ray.cluster_resources(), workers)
        desk = _open_desk(ray)
        with _place_for_ray(folder) as place:
            result, error = _fit(ray, config, workers, desk, place, stop)
        final, last = ray.get([desk.find_final_error.remote(), desk.find_last_error.remote()])
    if final is not None:
        final.is_said = False  # among the workers another one spoke; of the driver's lines it is the only one
        raise final
    if error is not None:
        raise _lost(workers, str(last or error)) from error
    summary: dict[str, Any] = result
    return summary


def _open_desk(ray: Any) -> Any:
    """A desk on the driver's own node: a node that is lost must not take it along."""
    strategies = import_extra("ray.util.scheduling_strategies", "ray")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Desk).remote()


@contextlib.contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    """Be a driver of the cluster; one that was started for this run ends with it."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Ray takes a metric only when it looks after the workers, by itself every two seconds: short epochs would wait.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", LOOK_SECONDS)
    was_joined = ray.is_initialized()
    try:
        if not was_joined:
            ray.init(address=address, logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        remedy = "start one with `ray start --head`, or leave --address out"
        raise MachineError("no Ray cluster", where=address or "", why=why, remedy=remedy) from error
    try:
        yield
    finally:
        if not was_joined:
            ray.shutdown()


def _check_room(there: dict[str, float], workers: Workers) -> None:
    """Refuse a cluster on which Ray would wait for ever.

    Raises:
        MachineError: how much is missing.
    """
    for name, each in (("CPU", workers.cpus), ("GPU", int(workers.on_gpu))):
        missing = workers.least * each - there.get(name, 0)
        if missing > 0:
            raise MachineError(
                f"the Ray cluster lacks {missing:g} {name}{'s' if missing > 1 else ''}",
                why=f"{workers.least} workers need {workers.least * each}, and it has {there.get(name, 0):g}",
                remedy="lower --workers or --cpus_per_worker, add machines, or wait for them with --wait_for_machines",
            )


@contextlib.contextmanager
def _place_for_ray(folder: Path) -> Iterator[Path]:
    """A folder beside the run folder for what Ray writes of its own: all machines see it, and nobody needs it later."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.ray-", dir=folder.parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fit(
    ray: Any, config: Config, workers: Workers, desk: Any, place: Path, stop: StopRequest
) -> tuple[Any, Exception | None]:
    """What the first worker gave back, or Ray's error. Signals of the driver reach the workers through the desk."""
    train, torch_train = import_extra("ray.train", "ray"), import_extra("ray.train.torch", "ray")
    resources = {"CPU": workers.cpus, **({"GPU": 1} if workers.on_gpu else {})}
    number = workers.most if workers.least == workers.most else (workers.least, workers.most)
    trainer = torch_train.TorchTrainer(
        _train_in_worker,
        train_loop_config={"config": config, "desk": desk, "folder": str(Path.cwd()), "workers": workers},
        scaling_config=train.ScalingConfig(num_workers=number, use_gpu=workers.on_gpu, resources_per_worker=resources),
        run_config=train.RunConfig(
            name="ray",
            storage_path=str(place),
            failure_config=train.FailureConfig(max_failures=workers.max_failures),
            logging_config=train.LoggingConfig("ERROR"),
        ),
    )
    ended: list[Any] = [None, None]  # the result, the error

    def fit() -> None:
        try:
            ended[0] = trainer.fit().return_value
        except Exception as error:  # noqa: BLE001 (looked at in the main thread)
            ended[1] = error

    thread = threading.Thread(target=fit, name="ray", daemon=True)  # in the main thread Ray would take Ctrl-C
    thread.start()
    is_told = False
    while thread.is_alive():
        thread.join(0.2)
        if stop.received is not None and not is_told:
            ray.get(desk.ask_to_stop.remote(stop.received))
            is_told = True
    return ended[0], ended[1]


def _lost(workers: Workers, text: str) -> MachineError:
    lines = [line for line in text.splitlines() if line.strip()] or ["no reason given"]
    times = f"they were started {workers.max_failures} more times" if workers.max_failures else "--max_failures is 0"
    remedy = "see the lines above; the same command goes on from the last checkpoint"
    return MachineError("workers of the Ray cluster were lost", why=f"{times}: {lines[-1]}", remedy=remedy)


# -- in a worker ------------------------------------------------------------------------------------------------------


def _train_in_worker(job: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker does. It returns where a new start would be of no use, and raises where Ray may try again."""
    ray, desk = import_extra("ray", "ray"), job["desk"]
    if ray.get(desk.find_final_error.remote()) is not None:
        return None
    for name in (None, "ray.train"):  # Ray lets each library talk
        logging.getLogger(name).setLevel(logging.WARNING)
    announce_range(job["workers"])
    with contextlib.suppress(OSError):  # paths of the settings are those of the driver, where its folder is here, too
        os.chdir(job["folder"])
    from alexnet_dist.runs.public_train import train

    stop = _Watch(ray, desk)
    try:
        return train(job["config"], stop=stop.is_wanted)
    except InterruptedRunError as error:
        number = ray.get(desk.find_signal.remote())  # of the driver; another worker may have heard of it first
        told = InterruptedRunError(number, error.step) if number is not None else error
        ray.get(desk.tell_error.remote(told, is_final=True))
    except AlexNetDistError as error:
        may_pass = isinstance(error, MachineError)  # a machine or a worker was lost: Ray's new start is for that
        ray.get(desk.tell_error.remote(error, is_final=not may_pass))
        if may_pass:
            raise
    finally:
        stop.end()
    return None


def announce_range(workers: Workers) -> None:
    """Tell this process as torchrun would that workers may come and go, so that any number of them shares a batch."""
    if workers.least < workers.most:
        os.environ["PET_NNODES"] = f"{workers.least}:{workers.most}"


class _Watch:
    """Looks at the desk from time to time, in a thread of its own: training never waits for an actor."""

    def __init__(self, ray: Any, desk: Any) -> None:
        self.number: int | None = None
        self._is_over = threading.Event()
        threading.Thread(target=self._look, args=(ray, desk), name="desk", daemon=True).start()

    def _look(self, ray: Any, desk: Any) -> None:
        while not self._is_over.wait(ASK_SECONDS) and self.number is None:
            with contextlib.suppress(Exception):  # the driver has gone: Ray ends the worker, too
                self.number = ray.get(desk.find_signal.remote())

    def is_wanted(self) -> bool:
        """Whether the driver was asked to stop."""
        return self.number is not None

    def end(self) -> None:
        """Look no more."""
        self._is_over.set()
