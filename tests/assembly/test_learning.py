"""Which network a step calls, where the update writes bf16 weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.tiny import make_runtime, tiny_spec

from alexnet_dist.assembly.learning import build_rule, use_shadows
from alexnet_dist.models import build_model
from alexnet_dist.parallel.mesh import build_mesh
from alexnet_dist.settings.schema import OptimizerConfig
from alexnet_dist.training.flat_update import Shadowed

pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("update", "precision", "world_size", "compiled", "accumulates", "expected"),
    [
        ("flat", "bf16", 1, False, False, True),
        ("reference", "bf16", 1, False, False, False),
        ("flat", "fp32", 1, False, False, False),
        ("flat", "fp16", 1, False, False, False),
        ("flat", "bf16", 2, False, False, False),
        ("flat", "bf16", 1, True, False, False),
        ("flat", "bf16", 1, False, True, False),
    ],
)
def test_bf16_weights_are_the_updates_where_they_give_autocasts_bits(
    update: str, precision: str, world_size: int, compiled: bool, accumulates: bool, expected: bool
) -> None:
    model = build_model(tiny_spec(), seed=0)
    optimizer = build_rule(OptimizerConfig(name="sgd"), model, update=update)
    mesh = replace(build_mesh(0, 1), world_size=world_size)
    runtime = replace(make_runtime(), precision=precision, mesh=mesh)
    forward = use_shadows(model, optimizer, compiled=compiled, accumulates=accumulates, runtime=runtime)
    assert isinstance(forward, Shadowed) == expected
    assert (forward is model) != expected
