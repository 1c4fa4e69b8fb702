"""`summary`: what a network is and costs, layer by layer, before a weight is made or an image read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet_dist.base.durable import format_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.text import align
from alexnet_dist.cli.networks import Network, configured_network, read_settings, stored_network
from alexnet_dist.cli.options import add_options, hand_over, settle_out
from alexnet_dist.settings.reader import new_parser, parse_arguments

if TYPE_CHECKING:  # torch takes a second and a half to import; a mistyped key should not wait for it
    from alexnet_dist.models import AlexNetSpec
    from alexnet_dist.models.summary import LayerSummary

EXAMPLES = """Show shapes, parameters and arithmetic of a network, layer by layer.

examples:
  python launch/summary.py --config imagenet_subset
  python launch/summary.py --model.variant ungrouped --model.in_channels 1 --model.image_size 227 --model.num_classes 10
  python launch/summary.py --weights runs/digits --format json

It needs no data and no GPU, and makes no weights. Any setting can be given; those of the network matter."""

BYTES_OF_FP32 = 4
PARTS = {"convolution": "convolutions", "fully_connected": "fully connected"}


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("summary", EXAMPLES, "[--config NAME | --weights FOLDER] [options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument("--weights", type=str, help="a run folder or its model/: the network of a training run")
    parser.add_argument("--format", default="table", choices=["table", "json"], help="of what is printed")
    parser.add_argument("--out", type=str, help="write it to this file instead of the terminal")
    add_options(parser, "overwrite", "quiet", "debug")
    arguments = parse_arguments(argv, parser)
    options = arguments.options
    out = settle_out(options)
    if options.weights is None:
        network = configured_network(*read_settings(options.config, arguments.given))
    else:
        _refuse_settings([*(["config"] if options.config else []), *arguments.given])
        network = stored_network(Path(options.weights))
    hand_over(FORMATS[options.format](network, _summarize(network.spec)), out, options.format == "table")
    return 0


def _refuse_settings(named: Sequence[str]) -> None:
    if named:
        why = "the network of --weights stays as it was trained"
        raise UsageError(f"--{named[0]} has no effect", where="command line", why=why, remedy="leave one of them out")


def _summarize(spec: AlexNetSpec) -> tuple[LayerSummary, ...]:
    from alexnet_dist.models.summary import summarize

    try:
        return summarize(spec)
    except ValueError as error:
        raise UsageError("model cannot be built", why=str(error)) from None


def format_table(network: Network, layers: Sequence[LayerSummary]) -> str:
    """Aligned columns, then the totals and the shares of the two kinds of layers with weights."""
    spec = network.spec
    cells: list[tuple[str, ...]] = [("layer", "what it does", "output", "parameters", "FLOPs")]
    cells += [("input", "", _join(_input_shape(spec)), "", "")]
    for layer in layers:
        numbers = (f"{number:,}" if number else "" for number in (layer.parameters, layer.flops))
        cells.append((layer.name, layer.detail, _join(layer.output_shape), *numbers))
    parameters, flops = _total(layers, "parameters"), _total(layers, "flops")
    cells.append(("total", "", "", f"{parameters:,}", f"{flops:,}"))
    shares = {name: _shares(layers, kind) for kind, name in PARTS.items()}
    return (
        f"variant: {network.variant}\n"
        f"classes: {spec.num_classes:,} ({network.classes_from})\n\n"
        f"{align(cells)}\n"
        + "".join(
            f"{name}: {share['parameters']:.1%} of the parameters, {share['multiply_adds']:.1%} of the FLOPs\n"
            for name, share in shares.items()
        )
        + "FLOPs of one image's forward pass: 2 for each multiply-add, 0 for the rest\n"
        f"bytes of the parameters in fp32: {BYTES_OF_FP32 * parameters:,}\n"
    )


def format_summary(network: Network, layers: Sequence[LayerSummary]) -> str:
    """One object: variant, spec, layers, totals (for one image) and shares."""
    from alexnet_dist.models import spec_to_dict

    totals = {name: _total(layers, name) for name in ("parameters", "multiply_adds", "flops")}
    values = {
        "variant": network.variant,
        "num_classes_from": network.classes_from,
        "spec": spec_to_dict(network.spec),
        "input_shape": _input_shape(network.spec),
        "layers": [asdict(layer) for layer in layers],
        "totals": {**totals, "bytes_fp32": BYTES_OF_FP32 * totals["parameters"]},
        "shares": {kind: _shares(layers, kind) for kind in PARTS},
    }
    return format_json(values, "the summary", indent=2) + "\n"


FORMATS = {"table": format_table, "json": format_summary}


def _input_shape(spec: AlexNetSpec) -> tuple[int, int, int]:
    return spec.in_channels, spec.image_size, spec.image_size


def _total(layers: Sequence[LayerSummary], field: str) -> int:
    return sum(getattr(layer, field) for layer in layers)


def _shares(layers: Sequence[LayerSummary], kind: str) -> dict[str, float]:
    """Which part of the parameters and of the multiply-adds layers of a kind have."""
    part = [layer for layer in layers if layer.kind == kind]
    return {field: _total(part, field) / _total(layers, field) for field in ("parameters", "multiply_adds")}


def _join(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)
