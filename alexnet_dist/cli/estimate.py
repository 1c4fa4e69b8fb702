"""`estimate`: what a step would cost under each strategy, on any number of processes, before a machine is rented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import format_json, read_json_file, write_json
from alexnet_dist.base.errors import UsageError
from alexnet_dist.base.ranks import world_size_from_environment
from alexnet_dist.cli.networks import configured_network, read_settings
from alexnet_dist.cli.options import ELEMENT_BYTES, add_options, check_above_zero, show
from alexnet_dist.costs.report import (
    advise,
    format_fleets,
    format_goodput,
    format_published,
    format_table,
    goodput_curves,
    goodput_to_json,
    predict_all,
    predict_goodput,
    to_json,
    to_lines,
)
from alexnet_dist.runs.targets import check_target
from alexnet_dist.settings.reader import new_parser, parse_arguments

if TYPE_CHECKING:  # torch takes a second and a half to import; a mistyped key should not wait for it
    from jsonargparse import Namespace

    from alexnet_dist.costs.goodput import Fleet
    from alexnet_dist.costs.model import Compute, Links
    from alexnet_dist.models import AlexNetSpec
    from alexnet_dist.settings.schema import Config

EXAMPLES = """Predict step time, images per second, bytes sent and memory of each strategy.

examples:
  python launch/estimate.py --images_per_second 60000 --link_gbits 100 --processes_per_machine 8 --inner_gbits 3600
  python launch/estimate.py --config imagenet_subset --link_gbits 1 --images_per_process 16 --figure estimate.png
  python launch/estimate.py --probe doctor.json --processes 2 16 128
  python launch/estimate.py --images_per_second 60000 --link_gbits 400 --processes_per_machine 8 --inner_gbits 3600 \
      --processes 8 64 512 2048 --failure_hours 40000 --goodput_figure goodput.png
  python launch/estimate.py --published

Without --images_per_second the speed of one process is measured here. --probe takes speeds and links from what
`doctor` wrote. A prediction is a band: its fast end hides communication behind the convolutions' backward pass
and is the one to expect, its slow end hides nothing. Links: what goes out of a machine each second, all its processes
together (--link_gbits), and what its processes exchange among themselves (--inner_gbits, the bus bandwidth of an
all-reduce).

With --failure_hours it simulates months in which machines fail, and says what share of the time trains (the goodput)
and how often to save."""

DEFAULT_COUNTS = tuple(2**power for power in range(11))
DEFAULT_IMAGES = 128
GBIT = 1e9 / 8  # bytes


@dataclass(frozen=True)
class Subject:
    """What is predicted, and from what.

    Args:
        variant: where the network's spec began.
        spec: the network.
        images: per process and step.
        precision: fp32, bf16 or fp16: of the activations in memory.
        compute: speed of one process alone.
        compute_from: where that comes from, in words.
        links: what joins the processes.
    """

    variant: str
    spec: AlexNetSpec
    images: int
    precision: str
    compute: Compute
    compute_from: str
    links: Links


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("estimate", EXAMPLES, "[options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument("--probe", type=str, help="JSON that doctor wrote with --out")
    parser.add_argument("--processes", type=int, nargs="+", default=list(DEFAULT_COUNTS), help="numbers of processes")
    parser.add_argument("--images_per_process", type=int, help=f"per step (default: {DEFAULT_IMAGES}, or the probe's)")
    parser.add_argument("--images_per_second", type=float, help="of one process alone (default: measured here)")
    parser.add_argument("--link_gbits", type=float, help="Gbit/s that a machine sends to the others")
    parser.add_argument("--inner_gbits", type=float, help="Gbit/s between the processes of a machine")
    parser.add_argument("--link_latency_us", type=float, default=20.0, help="microseconds of a hop between machines")
    parser.add_argument("--inner_latency_us", type=float, default=10.0, help="microseconds of a hop within a machine")
    parser.add_argument("--processes_per_machine", type=int, help="(default: 1, or the probe's)")
    add_options(parser, "exchange", "gradient_compression")
    parser.add_argument("--failure_hours", type=float, help="mean hours between two failures of one machine")
    parser.add_argument("--restart_seconds", type=float, default=120.0, help="from a failure to the next update")
    parser.add_argument("--checkpoint_seconds", type=float, default=5.0, help="for which training waits at a save")
    parser.add_argument("--spares", type=int, help="machines in reserve (default: there is always one)")
    parser.add_argument("--repair_hours", type=float, default=24.0, help="until a failed machine is a spare")
    parser.add_argument("--jitter", type=float, default=0.0, help="standard deviation of a machine's step, in steps")
    parser.add_argument("--published", action="store_true", help="show published runs beside the model, and end")
    parser.add_argument("--format", default="table", choices=["table", "json"], help="of what is printed")
    parser.add_argument("--out", type=str, help="JSON file to write")
    add_options(parser, "overwrite")
    parser.add_argument("--figure", type=str, help="PNG file to draw")
    parser.add_argument("--goodput_figure", type=str, help="PNG file to draw, with --failure_hours")
    add_options(parser, "quiet", "debug")
    arguments = parse_arguments(argv, parser)
    options = arguments.options
    if options.published:
        show(_describe_published())
        return 0
    _check_numbers(options)
    for name in ("out", "figure", "goodput_figure"):
        if getattr(options, name) is not None:
            check_target(getattr(options, name), options.overwrite, f"--{name}")
    subject = read_probe(options, arguments.given) if options.probe else settle_subject(options, arguments.given)
    show_estimate(subject, options)
    return 0


def _check_numbers(options: Namespace) -> None:
    speeds = ("images_per_second", "link_gbits", "inner_gbits")
    check_above_zero(options, "images_per_process", *speeds, "processes_per_machine")
    check_above_zero(options, "failure_hours", "checkpoint_seconds", "repair_hours")
    for name in ("restart_seconds", "spares", "jitter"):
        if (getattr(options, name) or 0) < 0:
            raise UsageError(f"--{name} is negative", where="command line", remedy="give 0 or more")
    if options.goodput_figure and options.failure_hours is None:
        remedy = "give --failure_hours"
        raise UsageError("--goodput_figure needs machines that fail", where="command line", remedy=remedy)
    if min(options.processes) < 1:
        raise UsageError(f"--processes has {min(options.processes)}", remedy="give numbers of at least 1")
    if world_size_from_environment() > 1:
        why = "it measures one process and calculates the others"
        remedy = "start it with python, and give --probe what doctor measured"
        raise UsageError("estimate runs in one process", why=why, remedy=remedy)


def settle_subject(options: Namespace, given: dict[str, Any]) -> Subject:
    """What the command line says, with the speed of one process measured where it is not told.

    Raises:
        UsageError: settings that cannot be meant, or links that are not told.
    """
    links = _stated_links(options, options.processes_per_machine or 1)
    config, says_data = read_settings(options.config, given)
    network = configured_network(config, says_data)
    images = options.images_per_process or DEFAULT_IMAGES
    from alexnet_dist.costs.model import Compute

    if options.images_per_second is not None:
        precision: str = "bf16" if config.precision == "auto" else config.precision
        compute, told = Compute(1 / options.images_per_second), "as told"
    else:
        compute, precision = _measure_here(config, network.spec, images)
        told = "measured here"
    return Subject(network.variant, network.spec, images, precision, compute, told, links)


def _measure_here(config: Config, spec: AlexNetSpec, images: int) -> tuple[Compute, str]:
    from alexnet_dist.costs.measure import measure_compute
    from alexnet_dist.parallel.runtime import start_runtime

    runtime = start_runtime(config.device, config.precision)
    return measure_compute(runtime, config, spec, images), runtime.precision


def _stated_links(options: Namespace, per_machine: int, probed: Links | None = None) -> Links:
    """Told speeds win over probed ones."""
    from alexnet_dist.costs.model import Link, Links

    between, inside = options.link_gbits, options.inner_gbits
    if probed is not None:
        links = replace(probed, per_machine=per_machine)
        # What compressing costs over a link that is only told, nobody has measured.
        if between is not None:
            told = replace(probed.between, bytes_per_second=between * GBIT)
            links = replace(links, between=told, between_compressed=None)
        if inside is not None:
            told = replace(probed.inside, bytes_per_second=inside * GBIT)
            links = replace(links, inside=told, inside_compressed=None)
        return links
    if between is None and inside is None:
        remedy = "give --link_gbits, or --probe with what doctor measured"
        raise UsageError("the speed of the network between machines is missing", where="command line", remedy=remedy)
    if per_machine > 1 and inside is None:
        why = f"{per_machine} processes of a machine exchange something"
        raise UsageError("--inner_gbits is missing", where="command line", why=why, remedy="give it in Gbit/s")
    if between is None and max(options.processes) > per_machine:
        why = f"{max(options.processes)} processes need more than one machine of {per_machine}"
        raise UsageError("--link_gbits is missing", where="command line", why=why, remedy="give it in Gbit/s")
    return Links(
        between=Link((between or inside) * GBIT, options.link_latency_us / 1e6),
        inside=Link((inside or between) * GBIT, options.inner_latency_us / 1e6),
        per_machine=per_machine,
    )


def read_probe(options: Namespace, given: dict[str, Any]) -> Subject:
    """What launch/doctor.py measured, for the network that it measured.

    Raises:
        UsageError: not such a file, one without a link or a speed, or settings that it has settled.
    """
    from alexnet_dist.costs.model import Compute, Links
    from alexnet_dist.models import spec_from_dict

    named = [*(["config"] if options.config else []), *given]
    if named:
        why = "the probe has settled what network it is"
        raise UsageError(f"--{named[0]} has no effect", where="command line", why=why, remedy="leave one of them out")
    path = Path(options.probe)
    try:
        values = read_json_file(path)
        compute = Compute(**values["compute"])
        links = Links.from_dict(values["links"]) if values["links"] is not None else None
        spec, variant = spec_from_dict(values["network"]["spec"]), values["network"]["variant"]
        images, precision = int(values["images_per_process"]), str(values["precision"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why, remedy = f"{type(error).__name__}: {error}", "write it with doctor --out"
        raise UsageError("not a probe", where=str(path), why=why, remedy=remedy) from None
    if options.images_per_second is not None:
        compute = Compute(1 / options.images_per_second)
    per_machine = options.processes_per_machine or (links.per_machine if links else 1)
    settled = _stated_links(options, per_machine, links)
    return Subject(variant, spec, options.images_per_process or images, precision, compute, str(path), settled)


def show_estimate(subject: Subject, options: Namespace) -> None:
    """Predict, then print, draw and write."""
    from alexnet_dist.costs.network_size import measure_network

    network = measure_network(subject.spec)
    counts = sorted(set(options.processes))
    predictions, notes = predict_all(
        network,
        counts,
        subject.images,
        subject.compute,
        subject.links,
        ELEMENT_BYTES[subject.precision],
        ELEMENT_BYTES[options.exchange or subject.precision],
        ELEMENT_BYTES[options.gradient_compression],
    )
    one_process = subject.images / subject.compute.step_seconds(subject.images)
    values = {
        **describe(subject),
        "exchange": options.exchange or subject.precision,
        "predictions": to_json(predictions),
        "notes": notes,
    }
    values["advice"] = advise(predictions)
    fleets = []
    if options.failure_hours is not None:
        fleets = predict_goodput(predictions, _stated_fleet(options), subject.links.per_machine)
        values["goodput"] = goodput_to_json(fleets)
    if options.format == "json":
        print(format_json(values, "the estimate", indent=2))
    else:
        show(_headline(subject, network.num_parameters, one_process) + "\n")
        show(format_table(predictions, one_process) + "\n")
        show("\n".join([*values["advice"], *notes]))
        if fleets:
            show(f"\n{_describe_fleet(options)}\n\n{format_goodput(fleets)}")
    if options.out is not None:
        write_json(Path(options.out), values)
    if options.figure is not None:
        from alexnet_dist.figures.estimate import draw_estimate

        draw_estimate(to_lines(predictions), counts, one_process, _title(subject), Path(options.figure))
    if options.goodput_figure is not None:
        from alexnet_dist.figures.goodput import draw_goodput

        draw_goodput(goodput_curves(fleets), _describe_fleet(options), Path(options.goodput_figure))


def _stated_fleet(options: Namespace) -> Fleet:
    """One of the machines that the command line describes."""
    from alexnet_dist.costs.goodput import Fleet

    names = ("failure_hours", "checkpoint_seconds", "restart_seconds", "spares", "repair_hours", "jitter")
    return Fleet(1, **{name: getattr(options, name) for name in names})


def _describe_fleet(options: Namespace) -> str:
    reserve, jitter = "always a spare machine", f", steps vary by {options.jitter:.0%}" if options.jitter else ""
    if options.spares is not None:
        reserve = f"{options.spares} spare machine{'s' * (options.spares != 1)}, repairs of {options.repair_hours:g} h"
    return (
        f"goodput: a machine fails every {options.failure_hours:,g} h, restart {options.restart_seconds:g} s, "
        f"save {options.checkpoint_seconds:g} s, {reserve}{jitter}"
    )


def describe(subject: Subject) -> dict[str, Any]:
    """What the predictions rest on, as JSON knows it."""
    from alexnet_dist.models import spec_to_dict

    return {
        "network": {"variant": subject.variant, "spec": spec_to_dict(subject.spec)},
        "images_per_process": subject.images,
        "precision": subject.precision,
        "compute": asdict(subject.compute),
        "compute_from": subject.compute_from,
        "links": asdict(subject.links),
    }


def _headline(subject: Subject, num_parameters: int, one_process: float) -> str:
    between, inside = _gbits(subject.links)
    count = subject.links.per_machine
    within = f", {inside:,.2f} Gbit/s within, {count} processes each" if count > 1 else ""
    lines = [
        f"network   {subject.variant}, {num_parameters:,} parameters, {subject.spec.num_classes:,} classes",
        f"batch     {subject.images} images per process and step",
        f"computing {one_process:,.0f} images/s in one process, {subject.precision} ({subject.compute_from})",
        f"links     {between:,.2f} Gbit/s out of a machine{within}",
    ]
    return "\n".join(lines) + "\n"


def _title(subject: Subject) -> str:
    between, inside = _gbits(subject.links)
    count = subject.links.per_machine
    within = f", {inside:,.0f} within" if count > 1 else ""
    machine = f"{count} process{'es' if count > 1 else ''} a machine"
    return f"{subject.variant}, {subject.images} images per process, {machine}, {between:,.1f} Gbit/s{within}"


def _gbits(links: Links) -> tuple[float, float]:
    return links.between.bytes_per_second / GBIT, links.inside.bytes_per_second / GBIT


def _describe_published() -> str:
    from alexnet_dist.costs.published import PROMPT_RESTART, PUBLISHED, PUBLISHED_FLEETS

    return (
        "Efficiency: images per second over those of one device times their number.\n\n"
        f"{format_published(PUBLISHED)}\n"
        "Link speeds given to the model are assumptions, not measurements of these machines.\n\n"
        "Goodput: share of the time that trained. Other networks than AlexNet.\n\n"
        f"{format_fleets(PUBLISHED_FLEETS)}\n"
        f"The model's: saves of 10 s at the best interval, restarts of {PROMPT_RESTART:g} s. Explained by: restarts "
        "that would give what was published.\n"
    )
