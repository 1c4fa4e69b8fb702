"""The kernels for eight channels at a time, as a GPU gets them: built for one, and kept by who records a network.

Both without a GPU, in a process in which Triton compiles: the other tests have its interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from alexnet_dist.models import LocalResponseNorm, build_model, build_on_meta, make_spec
from alexnet_dist.models.pooling import MaxPooling
from alexnet_dist.models.vectors import take_in_relu, use_vectors

BUILD = """
import re, triton
from collections import Counter
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from alexnet_dist.models import fused_relu_kernel as fused
from alexnet_dist.models import normalization_vectors_kernel as normalization, normalized_pooling_kernel as joined
from alexnet_dist.models import pooling_kernel as pooling

def count_arithmetic(made):
    return Counter(re.findall(r"(fma|mul|add|sub)[.a-z]*[.]f32", made.asm["ptx"]))

def build(kernel, **constants):
    names, types = kernel.arg_names, {"position_ptr": "*u8", "vectors": "i32", "weight": "fp32", "k": "fp32"}
    types |= {"count": "i32", "scale": "fp32", "images": "i32"}
    signature = {name: "constexpr" if name in constants else types.get(name, "*bf16") for name in names}
    places = {(names.index(name),): [["tt.divisibility", 16]] for name in names if name.endswith(("_ptr", "count"))}
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=places)
    target, options = GPUTarget("cuda", 90, 32), {"num_warps": 4}
    made = triton.compile(source, target=target, options=options)
    apart = triton.compile(source, target=target, options=options | {"enable_fp_fusion": False})
    assert count_arithmetic(made) == count_arithmetic(apart)
    moves = Counter(re.findall(r"(?:ld|st)[.]global[.v0-9b]*", made.asm["ptx"]))
    is_spilled = bool(re.search("STL|LDL", made.asm["sass"]))
    print(made.metadata.shared, is_spilled, *(f"{name} {moves[name]}" for name in sorted(moves)))

sides = dict(height=55, width=55, pooled_height=27, pooled_width=27, per_pixel=12, block=128)
build(normalization._forward, per_group=6, relu=True, block=128)
build(normalization._backward, per_group=6, relu=True, block=128)
build(pooling._forward, relu=True, **sides)
build(pooling._backward, **sides)
joined_sides = sides | dict(per_group=6)
build(joined._forward, relu_before=True, relu_behind=False, rows=joined.ROWS, **joined_sides)
build(joined._backward, relu=True, **joined_sides)
build(fused._add_bias_relu, channels=384, block=fused.BLOCK)
build(fused._mask_gradient, block=fused.BLOCK)
"""

RECORD = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from alexnet_dist.models import LocalResponseNorm
from alexnet_dist.models.pooling import MaxPooling
from alexnet_dist.models.vectors import use_vectors

def name_calls(graph):
    names = [str(node.target) for node in graph.nodes]
    return " ".join(name for name in names if "dist" in name or "pool" in name)

def keep(graph, _):
    print("compile", name_calls(graph.graph))
    return graph.forward

network, mode = torch.nn.Sequential(LocalResponseNorm(groups=2), MaxPooling(3, 2)), FakeTensorMode()
with mode:
    maps = torch.empty(4, 16, 15, 15, device="cuda").to(memory_format=torch.channels_last).requires_grad_()
    print("export", name_calls(torch.export.export(network, (maps,)).graph))
    torch.compile(network, backend=keep, fullgraph=True)(maps)
    use_vectors(network, False)
    print("export", name_calls(torch.export.export(network, (maps,)).graph))
"""


def run(program: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.slow  # twenty seconds of compiling
def test_a_gpu_loads_16_bytes_at_a_time_and_keeps_all_in_registers() -> None:
    """No shared memory, nothing spilled; a vector of positions has 8 bytes.

    The compiler melts no sum with a product, which it would do otherwise in each kernel: where two kernels share the
    arithmetic, they share its last bits.
    """
    pytest.importorskip("triton")
    assert run(BUILD) == [
        "0 False ld.global.v4.b32 3 st.global.v4.b32 1",
        "0 False ld.global.v4.b32 6 st.global.v4.b32 1",
        "0 False ld.global.v4.b32 9 st.global.v2.b32 1 st.global.v4.b32 1",
        "0 False ld.global.v2.b32 4 ld.global.v4.b32 4 st.global.v4.b32 1",
        "0 False ld.global.v4.b32 27 st.global.v2.b32 1 st.global.v4.b32 1",  # nine pixels, with one before and behind
        # Of four windows, the gradients and positions of eight channels, and of two before and two behind; four pixels.
        "0 False ld.global.b16 8 ld.global.b32 8 ld.global.v2.b32 4 ld.global.v4.b32 16 st.global.v4.b32 4",
        "0 False ld.global.b16 8 ld.global.v4.b32 1 st.global.v4.b32 1",  # a bias a value, from the cache
        "0 False ld.global.v4.b32 2 st.global.v4.b32 1",
    ]


@pytest.mark.slow
def test_compile_and_export_keep_the_kernels() -> None:
    pytest.importorskip("triton")
    kept = "alexnet_dist.normalize_vectors.default alexnet_dist.pool_vectors.default"
    assert run(RECORD) == [f"export {kept}", f"compile {kept}", "export aten.max_pool2d.default"]


def test_a_network_can_be_kept_from_them() -> None:
    model = build_on_meta(make_spec("source2012"))
    for wanted in (False, True):
        use_vectors(model, wanted)
        found = [module for module in model.modules() if isinstance(module, LocalResponseNorm | MaxPooling)]
        assert [module.uses_vectors for module in found] == [wanted] * 5
        assert all(isinstance(module, nn.MaxPool2d) or module.groups == 2 for module in found)


@pytest.mark.parametrize(
    ("variant", "left"), [("paper", [9, 11]), ("source2012", [9, 11]), ("ungrouped", [7, 9]), ("torchvision", [7, 9])]
)
def test_normalization_and_pooling_take_the_relu_beside_them(variant: str, left: list[int]) -> None:
    """On a CPU they call it: outputs and gradients are the same to the bit, and no layer has another number."""
    small = {"image_size": 64, "conv_channels": (8, 16, 8, 8, 8), "fc_width": 16, "num_classes": 5, "dropout": 0.0}
    model, images = build_model(make_spec(variant, **small), seed=0), torch.randn(2, 3, 64, 64)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0, 0.3, generator=torch.Generator().manual_seed(1))
    found = []
    for takes in (False, True):
        if takes:
            take_in_relu(model.features)
        model.zero_grad()
        logits = model(images)
        logits.square().mean().sqrt().backward()
        found.append([logits.detach(), *(weight.grad.clone() for weight in model.parameters())])
    assert all(map(torch.equal, *found))
    relus = [place for place, module in enumerate(model.features) if isinstance(module, nn.ReLU)]
    assert len(relus) == 2
    assert relus == left
    assert sum(getattr(module, "takes_relu", False) for module in model.modules()) == 3
