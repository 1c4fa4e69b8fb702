"""How many kernels one eager update of the paper's network starts on a GPU, counted without one.

What is counted: the operations of a real `train_step` with tensors that have no memory, by a TorchDispatchMode, and the
starts of our own kernels. Each operation counts as the kernels that PyTorch's source starts for it on a GPU (STARTS;
one, where nothing stands there), views and allocations as none. What is not: kernels that cuDNN and cuBLAS add inside
of one operation (transposes, split sums), and copies of the loader. The tensors say that they are on a CPU, as autograd
cannot run for a GPU that is not there; dropout is the operation that a GPU has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

BUDGET = 60

COUNT = """
import json, sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from alexnet_dist.assembly.kernels import Kernels, apply_kernels
from alexnet_dist.assembly.learning import build_rule, use_shadows
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.models import AlexNet, make_spec
from alexnet_dist.models import fused_relu, joined_pooling, normalization, pooling
from alexnet_dist.settings.schema import OptimizerConfig
from alexnet_dist.training.optim import set_lr
from alexnet_dist.training.step import DeviceCounters, train_step
from helpers.tiny import make_runtime

FREE = "view _unsafe_view t transpose permute expand detach alias split select unsqueeze squeeze slice".split()
FREE += "as_strided empty empty_like empty_strided new_empty new_empty_strided lift_fresh promote_types".split()
# cuDNN's product, then the bias; gradients of maps, weights and bias. 931 chunks of 65,536 values, 320 a start. Zeros
# are filled in before a scattered sum.
STARTS = {"convolution": 2, "convolution_backward": 3, "_fused_sgd_": 4, "topk": 2}
STARTS |= {"nll_loss_backward": 2, "max_pool2d_with_indices_backward": 2}
found = Counter()


class Count(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        space, name, *_ = str(function).split(".")
        if space == "aten" and name not in FREE:
            found[name] += STARTS.get(name, 1)
            if name == "convolution_backward":
                found[name] -= 3 - sum(args[-1])  # the images need no gradient, nor does a bias that is not there
            if name == "convolution":
                found[name] -= args[2] is None
        return function(*args, **(kwargs or {}))


def start(kernel, *args, **kwargs):
    found["ours: " + kernel.fn.__module__.rsplit(".", 1)[1] + kernel.fn.__name__] += 1


JITFunction.run = start
for module in (fused_relu, joined_pooling, normalization, pooling):
    module.runs_kernels = lambda maps: True
torch.nn.functional.dropout = lambda values, p, training, inplace: torch.native_dropout(values, p, training)[0]
device, size, kernels = torch.device("cpu"), 512, Kernels(*sys.argv[1].split(), reason="")
with FakeTensorMode(allow_non_fake_inputs=True):
    model = AlexNet(make_spec("paper")).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            weight = module.weight.detach().to(memory_format=torch.channels_last)
            module._parameters["weight"] = torch.nn.Parameter(weight)
    apply_kernels(model, kernels, "ddp")
    optimizer = build_rule(OptimizerConfig(name="sgd"), model, update=kernels.update)
    set_lr(optimizer, 0.01)
    accelerator = SimpleNamespace(autocast=lambda: torch.autocast("cpu", torch.bfloat16), scaler=None)
    runtime = replace(make_runtime(), precision="bf16", accelerator=accelerator)
    forward = use_shadows(model, optimizer, compiled=False, accumulates=False, runtime=runtime)
    images = torch.empty(size, 3, 224, 224, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    batch = Batch(images, torch.zeros(size, dtype=torch.int64), torch.ones(size), torch.arange(size), size, [])
    how = dict(micro_batch_size=size, scale=1 / size, counters=DeviceCounters.on(device))
    how["fused_loss"] = kernels.loss == "fused"
    train_step(runtime, forward, optimizer, batch, **how)  # rates travel before the first one
    found.clear()
    with Count():
        train_step(runtime, forward, optimizer, batch, **how)
print(json.dumps(found))
"""


def count_launches(kernels: str) -> dict[str, int]:
    """In a process of its own, in which Triton compiles: the other tests have its interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    program = [sys.executable, "-c", COUNT, kernels]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.heavy
@pytest.mark.parametrize(("maps", "all_", "ours"), [("vectors", 60, 18), ("joined", 56, 14)])
def test_an_eager_update_keeps_to_its_budget(maps: str, all_: int, ours: int) -> None:
    """Normalization and pooling in one kernel save two of conv1's and two of conv2's, forward and backward."""
    found = count_launches(f"{maps} grouped direct fused flat fused")
    assert sum(found.values()) == all_ <= BUDGET, found
    assert sum(number for name, number in found.items() if name.startswith("ours")) == ours
    assert found["ours: flat_update_kernel_update"] == 2  # the second one runs beside the backward pass
    assert "_to_copy" not in found  # no copy of a weight or gradient in another type


@pytest.mark.slow
def test_pytorchs_loss_optimizer_and_layers_start_twice_as_many() -> None:
    found = count_launches("vectors grouped direct reference reference reference")
    assert sum(found.values()) == 121, found
    assert found["_to_copy"] == 34
