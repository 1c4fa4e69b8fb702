"""`doctor`: is everyone there and alike, how fast is what joins them, and what would each strategy cost on it?"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.base.durable import write_json
from alexnet_dist.base.ranks import is_first_here
from alexnet_dist.cli.options import ELEMENT_BYTES, add_options, check_above_zero, import_shown, settle_out, show
from alexnet_dist.settings.reader import new_parser, parse_arguments
from alexnet_dist.settings.schema import Config

if TYPE_CHECKING:  # torch takes a second and a half to import; a mistyped key should not wait for it
    from jsonargparse import Namespace

    from alexnet_dist.assembly.sets import Splits
    from alexnet_dist.cli.networks import Network
    from alexnet_dist.costs.model import Compute, Links
    from alexnet_dist.costs.probe import LinkProbe
    from alexnet_dist.parallel.peers import Peer
    from alexnet_dist.parallel.runtime import Runtime

EXAMPLES = """Look at every process before training: device, clock, versions, images, link, cost of each strategy.

examples:
  python launch/doctor.py
  accelerate launch --multi_gpu launch/doctor.py --config imagenet_subset --out doctor.json
  accelerate launch --config_file launch/accelerate/two_machines.yaml --machine_rank 0 launch/doctor.py --config smoke
  torchrun --nproc_per_node 2 launch/doctor.py --device cpu

With --config, or any setting of data, every process looks for the images on its own machine's disk, and all are
compared. Images that differ end it with exit code 3; other versions, or a launcher that did not start what it was asked
for, with 5. --out writes what `estimate --probe` reads."""

DEFAULT_IMAGES = 16
CLOCK_WARNING_SECONDS = 1.0


def main(argv: Sequence[str]) -> int:
    """Run the verb; its exit code."""
    parser = new_parser("doctor", EXAMPLES, "[options] [--SETTING VALUE ...]")
    add_options(parser, "config")
    parser.add_argument("--seconds", type=float, default=2.0, help="that the all-reduce probe takes")
    parser.add_argument("--wait_seconds", type=float, default=60.0, help="for the other processes to come")
    parser.add_argument("--images_per_process", type=int, help="(default: the configuration's share, or 16)")
    parser.add_argument("--images_per_second", type=float, help="of one process alone (default: measured)")
    add_options(parser, "exchange", "gradient_compression")
    parser.add_argument("--out", type=str, help="JSON file to write, which estimate --probe reads")
    add_options(parser, "overwrite", "quiet", "debug")
    arguments = parse_arguments(argv, parser)
    check_above_zero(arguments.options, "seconds", "wait_seconds", "images_per_process", "images_per_second")
    settle_out(arguments.options)
    examine(arguments.options, arguments.given)
    return 0


def examine(options: Namespace, given: dict[str, Any]) -> None:
    """Examine this job, and print what is found in its main process.

    Raises:
        MachineError: versions that differ, a wrong launch, or processes that do not come.
        DataError: images that are missing, or differ between machines.
    """
    import_shown("alexnet_dist.parallel.runtime")
    from alexnet_dist.cli.networks import configured_network, read_settings
    from alexnet_dist.costs.probe import links_from_probe, probe_links
    from alexnet_dist.parallel.peers import check_versions, introduce, list_machines, measure_clocks
    from alexnet_dist.parallel.runtime import lost_peers_named, start_runtime
    from alexnet_dist.runs.folder import silence_logging, start_logging

    config, says_data = read_settings(options.config, given)
    network = configured_network(config, says_data)
    _warn_about_interface()
    runtime = start_runtime(config.device, config.precision, wait_seconds=options.wait_seconds)
    with lost_peers_named(), contextlib.closing(runtime):
        start_logging(None) if runtime.is_main else silence_logging()
        peers = introduce(runtime)
        machines = list_machines(peers)
        _say(runtime, _describe_peers(peers, machines))
        _say(runtime, _describe_clocks(measure_clocks(runtime)))
        check_versions(peers)
        _say(runtime, f"versions  equal: {', '.join(' '.join(pair) for pair in peers[0].versions.items())}")
        _say(runtime, _describe_data(_compare_data(runtime, config) if says_data else None, len(machines)))
        probes = probe_links(runtime.device, machines, options.seconds)
        _say(runtime, _describe_links(probes, machines))
        links = links_from_probe(probes, max(map(len, machines))) if probes else None
        images = options.images_per_process or _share(config, says_data, runtime.world_size)
        compute = _find_compute(runtime, config, network, options, images)
        if runtime.is_main:
            report = _report_costs(runtime, network, images, compute, links, options)
            facts = {"machines": machines, "probes": {name: asdict(probe) for name, probe in probes.items()}}
            if options.out is not None:
                write_json(Path(options.out), {**report, **facts, "versions": peers[0].versions})


def _warn_about_interface() -> None:
    """On each machine, before the processes join: on the wrong interface they never do."""
    from alexnet_dist.parallel.processes.network import GLOO, advise_interface, settle_interface

    settled, wrong = settle_interface(), advise_interface()
    said = f"WARNING: {wrong}" if wrong else f"{settled}: set as {GLOO} here, where the machine's name is a loopback's"
    if is_first_here() and (settled or wrong):
        print(f"interface {said}", file=sys.stderr, flush=True)


def _say(runtime: Runtime, text: str) -> None:
    if runtime.is_main:
        show(text)


def _describe_peers(peers: Sequence[Peer], machines: Sequence[Sequence[int]]) -> str:
    count, hosts = len(peers), len(machines)
    lines = [f"processes {count} on {hosts} machine{'s' if hosts > 1 else ''}, all here"]
    for number, ranks in enumerate(machines):
        for rank in ranks:
            peer = peers[rank]
            threads = f"{peer.threads} thread{'s' if peer.threads > 1 else ''}"
            lines.append(
                f"          rank {rank}: machine {number} ({peer.host}), {peer.device}, {threads}, process {peer.pid}"
            )
    return "\n".join(lines)


def _describe_clocks(clocks: Sequence[tuple[float, float]]) -> str:
    if len(clocks) == 1:
        return "clocks    one machine, nothing to compare"
    farthest = max(range(len(clocks)), key=lambda rank: abs(clocks[rank][0]))
    offset, uncertainty = clocks[farthest]
    bound = f"(uncertain by {1e3 * uncertainty:.1f} ms)"
    if abs(offset) - uncertainty <= CLOCK_WARNING_SECONDS:
        return f"clocks    within {1e3 * abs(offset):.1f} ms of rank 0's {bound}"
    way = "ahead" if offset > 0 else "behind"
    return f"clocks    WARNING: rank {farthest} is {abs(offset):,.1f} s {way} {bound}; training does not mind, logs do"


def _compare_data(runtime: Runtime, config: Config) -> Splits:
    from functools import partial

    from alexnet_dist.assembly.sets import build_splits
    from alexnet_dist.runs.same_data import find_same_images

    return find_same_images(runtime, partial(build_splits, config.data, config.seed, progress=runtime.is_main))


def _describe_data(splits: Splits | None, machines: int) -> str:
    if splits is None:
        return "data      not looked at: no --config"
    counts = [f"{count:,} {name}" for name, count in splits.counts().items()]
    where = f"equal on {machines} machines" if machines > 1 else "found"
    return f"data      {where}: {', '.join(counts)} images, fingerprint {splits.fingerprint[:12]}"


def _describe_links(probes: dict[str, LinkProbe], machines: Sequence[Sequence[int]]) -> str:
    if not probes:
        return "link      none: one process"
    words = {"between": f"over {len(machines)} machines", "inside": "within a machine"}
    lines = []
    for name, probe in probes.items():
        speed = probe.bus_bytes_per_second
        lines.append(
            f"link      {words[name]}: {8 * speed / 1e9:.2f} Gbit/s ({speed / 1e6:,.0f} MB/s) of bus bandwidth, "
            f"all-reduce of {probe.tensor_bytes / 2**20:g} MiB over {probe.processes} processes; as bf16 "
            f"{probe.compression_gain:.2f} times as fast; {1e3 * probe.latency_seconds:.2f} ms for one number"
        )
    return "\n".join(lines)


def _share(config: Config, says_data: bool, processes: int) -> int:
    return max(1, config.train.global_batch_size // processes) if says_data else DEFAULT_IMAGES


def _find_compute(runtime: Runtime, config: Config, network: Network, options: Namespace, images: int) -> Compute:
    from alexnet_dist.costs.measure import measure_compute
    from alexnet_dist.costs.model import Compute

    if options.images_per_second is not None:
        return Compute(1 / options.images_per_second)
    return measure_compute(runtime, config, network.spec, images)


def _report_costs(
    runtime: Runtime, network: Network, images: int, compute: Compute, links: Links | None, options: Namespace
) -> dict[str, Any]:
    """Print what each strategy costs on this job; what --out writes."""
    from alexnet_dist.costs.model import Link, Links
    from alexnet_dist.costs.network_size import measure_network
    from alexnet_dist.costs.report import advise, format_table, predict_all, to_json
    from alexnet_dist.models import spec_to_dict

    count, alone = runtime.world_size, images / compute.step_seconds(images)
    show(f"computing {network.variant}, {images} images: {1e3 * images / alone:,.1f} ms a step, {alone:,.1f} images/s")
    size, joined = measure_network(network.spec), links or Links(Link(1.0), Link(1.0))
    kinds = (runtime.precision, options.exchange or runtime.precision, options.gradient_compression)
    predictions, notes = predict_all(size, [count], images, compute, joined, *(ELEMENT_BYTES[kind] for kind in kinds))
    show(f"\n{format_table(predictions, alone)}\n")
    show("\n".join([*advise(predictions), *notes]))
    return {
        "network": {"variant": network.variant, "spec": spec_to_dict(network.spec)},
        "images_per_process": images,
        "precision": runtime.precision,
        "compute": asdict(compute),
        "links": asdict(links) if links is not None else None,
        "predictions": to_json(predictions),
    }
