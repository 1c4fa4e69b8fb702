"""`summary`: what a network is and costs, layer by layer, before a weight is made or an image read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import format_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.text import align
from alexnet_dist.settings.reader import build_config, load_config, new_parser, parse_arguments
from alexnet_dist.settings.schema import Config

if TYPE_CHECKING:  # torch takes a second and a half to import; a mistyped key should not wait for it
    from alexnet_dist.models import AlexNetSpec
    from alexnet_dist.models.summary import LayerSummary

EXAMPLES = """Show shapes, parameters and arithmetic of a network, layer by layer.

examples:
  python launch/summary.py --config imagenet_subset
  python launch/summary.py --model.variant ungrouped --model.in_channels 1 --model.image_size 227 --model.num_classes 10
  python launch/summary.py --weights runs/digits --format json

It needs no data and no GPU, and makes no weights. Any setting below can be given; those of the network matter."""

IMAGENET_CLASSES = 1000
OTHERWISE = "set --model.num_classes for others"
BYTES_OF_FP32 = 4
PARTS = {"convolution": "convolutions", "fully_connected": "fully connected"}


@dataclass(frozen=True)
class Network:
    """What is summarised.

    Args:
        variant: where its spec began.
        spec: the network.
        classes_from: where its number of outputs comes from.
    """

    variant: str
    spec: AlexNetSpec
    classes_from: str


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("summary", EXAMPLES)
    parser.add_argument("--config", type=str, help="settings: a YAML file, or a name in configs/")
    parser.add_argument("--weights", type=str, help="a run folder or its model/: the network of a training run")
    parser.add_argument("--format", type=str, default="table", choices=["table", "json"], help="of what is printed")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    arguments = parse_arguments(argv, parser)
    options = arguments.options
    if options.weights is None:
        network = configured_network(*read_settings(options.config, arguments.given))
    else:
        _refuse_settings([*(["config"] if options.config else []), *arguments.given])
        network = stored_network(Path(options.weights))
    print(WRITERS[options.format](network, _summarise(network.spec)), end="")
    return 0


def _refuse_settings(named: Sequence[str]) -> None:
    if named:
        why = "the network of --weights stays as it was trained"
        raise UsageError(f"--{named[0]} has no effect", where="command line", why=why, remedy="leave one of them out")


def _summarise(spec: AlexNetSpec) -> tuple[LayerSummary, ...]:
    from alexnet_dist.models.summary import summarise

    try:
        return summarise(spec)
    except ValueError as error:
        raise UsageError("model cannot be built", why=str(error)) from None


def configured_network(config: Config, says_data: bool) -> Network:
    """The network that settings describe; see `read_settings`.

    Raises:
        UsageError: a network that cannot be built.
    """
    num_classes, classes_from = count_classes(config, says_data)
    from alexnet_dist.assembly.network import build_spec

    spec = build_spec(config.model, num_classes, config.parallel.exchange_at)
    return Network(config.model.variant, spec, classes_from)


def read_settings(name: str | None, given: dict[str, Any]) -> tuple[Config, bool]:
    """The settings, and whether they say which data.

    Args:
        name: a configuration file; None without one, which then needs neither data nor a length of training.
        given: settings from the command line, {dotted name: value}.

    Raises:
        UsageError: settings that cannot be meant.
    """
    if name is not None:
        return load_config(name, given), True
    stand_ins = {"data.root": "."} if "train.max_steps" in given else {"data.root": ".", "train.epochs": 1}
    return build_config({**stand_ins, **given}), any(key.startswith("data.") for key in given)


def count_classes(config: Config, says_data: bool) -> tuple[int, str]:
    """The number of outputs, and where it comes from.

    Args:
        config: the settings.
        says_data: whether they say which data; without any, the network is ImageNet's.
    """
    data = config.data
    if config.model.num_classes is not None:
        return config.model.num_classes, "model.num_classes"
    if not says_data:
        return IMAGENET_CLASSES, f"ImageNet's; {OTHERWISE}"
    from alexnet_dist.assembly.sets import make_options
    from alexnet_dist.data.sources.source import open_source

    number, said = open_source(data.source).count_classes(make_options(data))
    return (number, said) if number is not None else (IMAGENET_CLASSES, f"ImageNet's, as {said}; {OTHERWISE}")


def stored_network(path: Path) -> Network:
    """The network of a run folder or model folder, from its config.json alone.

    Raises:
        CheckpointError: no model there, or a damaged one.
    """
    from alexnet_dist.inference.model_folder import find_model_folder, read_card

    folder = find_model_folder(path)
    card = read_card(folder)
    return Network(card.variant, card.spec, str(folder))


def write_table(network: Network, layers: Sequence[LayerSummary]) -> str:
    """Aligned columns, then the totals and the shares of the two kinds of layers with weights."""
    spec = network.spec
    cells: list[tuple[str, ...]] = [("layer", "what it does", "output", "parameters", "multiply-adds", "FLOPs")]
    cells += [("input", "", _join(_input_shape(spec)), "", "", "")]
    for layer in layers:
        numbers = (f"{number:,}" if number else "" for number in (layer.parameters, layer.multiply_adds, layer.flops))
        cells.append((layer.name, layer.detail, _join(layer.output_shape), *numbers))
    parameters, multiply_adds = _total(layers, "parameters"), _total(layers, "multiply_adds")
    cells.append(("total", "", "", f"{parameters:,}", f"{multiply_adds:,}", f"{_total(layers, 'flops'):,}"))
    for kind, name in PARTS.items():
        shares = _shares(layers, kind)
        cells.append((name, "", "", f"{shares['parameters']:.1%}", f"{shares['multiply_adds']:.1%}", ""))
    return (
        f"variant: {network.variant}\n"
        f"classes: {spec.num_classes:,} ({network.classes_from})\n\n"
        f"{align(cells)}\n"
        f"Arithmetic is that of one image's forward pass; the parameters take {BYTES_OF_FP32 * parameters:,} bytes in "
        "fp32.\n"
    )


def write_json(network: Network, layers: Sequence[LayerSummary]) -> str:
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


WRITERS = {"table": write_table, "json": write_json}


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
