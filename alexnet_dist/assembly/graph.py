"""From train.cuda_graph to whether a whole update is captured as a CUDA graph, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from alexnet_dist.base.errors import MachineError
from alexnet_dist.training.graph import CudaRecorder, Recorder
from alexnet_dist.training.optim import place_rates

OLDER = "an older version began the run, with rates on the host"


@dataclass(frozen=True)
class GraphChoice:
    """Whether updates are captured; what run.json holds of it.

    Args:
        wanted: whether a start tries it.
        reason: in words.
        failure: why it could not be done, once tried; later starts do not try again unless they are asked to.
    """

    wanted: bool
    reason: str
    failure: str | None = None


@dataclass(frozen=True)
class Update:
    """What an update of a run is made of.

    Args:
        device: where the network lives.
        precision: fp32, tf32, bf16 or fp16.
        strategy: ddp, towers or hybrid.
        compiled: by torch.compile.
        profiled: by `train --profile`.
    """

    device: torch.device
    precision: str
    strategy: str = "ddp"
    compiled: bool = False
    profiled: bool = False


def check_graph(cuda_graph: Literal["auto"] | bool, device: torch.device) -> None:
    """Refuse a CUDA graph without CUDA.

    Raises:
        MachineError: train.cuda_graph is true, and there is no GPU.
    """
    if cuda_graph is True and device.type != "cuda":
        why, remedy = "there is no CUDA device", "set --train.cuda_graph auto"
        raise MachineError("train.cuda_graph true needs a GPU", why=why, remedy=remedy)


def choose_graph(cuda_graph: Literal["auto"] | bool, update: Update, failure: str | None = None) -> GraphChoice:
    """Choose whether to capture updates.

    Args:
        cuda_graph: the setting.
        update: what is to be captured.
        failure: see `find_failure_before`.
    """
    obstacle = _find_obstacle(update)
    if cuda_graph is False:
        return GraphChoice(False, "train.cuda_graph is false", failure)
    if obstacle is not None:
        return GraphChoice(False, obstacle, failure)
    if cuda_graph == "auto" and failure is not None:
        return GraphChoice(False, failure, failure)
    return GraphChoice(True, "asked for" if cuda_graph is True else "CUDA")


def _find_obstacle(update: Update) -> str | None:
    if update.device.type != "cuda":
        return "there is no GPU"
    if update.strategy != "ddp":
        return f"parallel.strategy is {update.strategy}"
    if update.compiled:
        return "compile is true"
    if update.precision == "fp16":
        return "precision is fp16, which scales its losses"
    return "--profile looks into each update" if update.profiled else None


def find_failure_before(recorded: Mapping[str, Any] | None, goes_on: bool) -> str | None:
    """Why updates of a run were not captured until now, although they might be.

    Args:
        recorded: run.json's `cuda_graph`, if any.
        goes_on: whether there are updates of the run.
    """
    if recorded is None:
        return OLDER if goes_on else None
    failure: str | None = recorded["failure"]
    return failure


def settle_rates(choice: GraphChoice, optimizer: Optimizer, device: torch.device) -> None:
    """Let the rates lie on a GPU, captured or not, so that the bits are the same; an older run keeps its own."""
    if device.type == "cuda" and choice.failure != OLDER:
        place_rates(optimizer, device)


def build_recorder(choice: GraphChoice, device: torch.device) -> Recorder | None:
    """What captures updates; None where all are eager."""
    return CudaRecorder(device) if choice.wanted else None
