"""How fast pictures are read from archives, beside the same pictures as files; how long it takes to list them.

Protocol: the training images of --data.root, or made ones, lie as files in class folders, in the shards that
`prepare pack` writes, and in parquet. All arms of an engine are timed window by window, A B A B ..., with random
resized crops to 224, mirroring and lighting, batches of 16.

- warm: a stream of batches with a worker or thread for each core, from the page cache.
- cold: the kernel is told before each window to forget all files (posix_fadvise); the main process decodes, one pass.
  A disk's own cache, and that of a host of virtual machines, stay warm.
- list: pictures that are listed per second and core, with the sizes in their headers, from the page cache; for parquet
  the bytes are unpacked, too.
- load: a list of 1.28 million made-up pictures in 147 archives, as a start finds it: seconds, and the memory of all
  processes together. That is the list, which is mapped, once, and what the process that loads it and two decoding
  processes that are sent it have beside (anonymous memory), after each has looked at every picture's name and place.

A ratio is of images per second, round by round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from common.images import describe_images, find_images
from common.report import Report, describe_environment, describe_speed, new_parser, pick_effort, run_benchmark
from common.timing import Protocol, Spread, Window, divide, interleave, settle_window

from alexnet_dist.assembly.public_loader import make_index, make_loader
from alexnet_dist.base.extras import is_installed
from alexnet_dist.base.machine import available_cores, tune_allocator
from alexnet_dist.base.progress import Progress
from alexnet_dist.data.engines.choose import find_obstacle
from alexnet_dist.data.engines.workers import worker_context
from alexnet_dist.data.files.kept_index import find_folder
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.sources.source import open_source
from alexnet_dist.data.sources.tar_index import ArchiveSet, Listing, write_listing
from alexnet_dist.data.sources.tar_labels import Row
from alexnet_dist.data.sources.tar_write import plan_shards, write_shards

BATCH_SIZE = 16
SHARD_BYTES = 4_000_000
NUM_SHARDS = 147  # of ImageNet as timm packs it, and the pictures in them
NUM_PICTURES = 1_281_167
CROPS: dict[str, Any] = {"crop": "random_resized", "resize": None, "lighting": "source2012", "device": "cpu"}
CACHED: dict[str, Any] = {"crop": "random", "resize": 256, "lighting": "source2012", "device": "cpu"}
TARGETS = {"tar/folder": 1.0}
ENDLESS = 10**8  # batches
DECODING_PROCESSES = 2  # of a machine with two cores


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("sources", "Speed of archives beside files, of listing them, and of loading a large list.")
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Warm, cold, listing, loading."""
    tune_allocator()
    report = Report(describe_environment(options))
    rounds = pick_effort(options, full=6, quick=3, tiny=1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        index = find_images(options.data_root, folder, pick_effort(options, full=512, quick=128, tiny=32))
        index = index.subset(np.flatnonzero(index.is_plain)[: pick_effort(options, full=4096, quick=1024, tiny=32)])
        report.environment["images"] = describe_images(index, made=options.data_root is None)
        sets = write_sets(index, folder)
        protocol = Protocol(rounds, *pick_effort(options, full=(2.0, 12), quick=(1.0, 6), tiny=(0.0, 2)))
        for engine in ("torchvision", "dali", "cache"):
            if find_obstacle(engine) is None:
                measure_warm(report, sets, engine, protocol, folder / "cache")
        measure_cold(report, sets, rounds)
        measure_listing(report, sets, folder, rounds)
        measure_loading(
            report, folder / "large", pick_effort(options, full=NUM_PICTURES, quick=NUM_PICTURES, tiny=1000)
        )
    return report


def write_sets(index: SampleIndex, folder: Path) -> dict[str, Callable[[Path], SampleIndex]]:
    """The same pictures as files, shards and parquet; what lists each, given a cache folder."""
    files, shards, parquet = folder / "files", folder / "shards", folder / "parquet"
    for sample, path in enumerate(index.paths):
        place = files / index.classes[index.labels[sample]] / f"{sample:06d}{Path(path).suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(index.root / path, place)
    shards.mkdir()
    whole = make_index(files, cache_dir=folder / "cache")
    plan = plan_shards(whole, "train", seed=0, shard_bytes=SHARD_BYTES, has_json=False)
    with Progress("packing", len(plan), "shards", shown=False) as bar:
        write_shards(whole, plan, shards, ["cls"], bar)
    (shards / "classes.txt").write_text("".join(f"{name}\n" for name in whole.classes))
    sets: dict[str, Callable[[Path], SampleIndex]] = {
        "folder": lambda cache: make_index(files, cache_dir=cache),
        "tar": lambda cache: make_index(shards, "train-*.tar", source="tar", cache_dir=cache),
    }
    if is_installed("pyarrow"):
        write_parquet(whole, parquet)
        sets["parquet"] = lambda cache: make_index(parquet, "train", source="parquet", cache_dir=cache)
    return sets


def write_parquet(index: SampleIndex, folder: Path) -> None:
    """One file with the columns that the Hub has."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = [{"bytes": (index.root / path).read_bytes(), "path": path} for path in index.paths]
    table = pa.table({"image": pa.array(pictures, type=kind), "label": pa.array(index.labels)})
    folder.mkdir()
    pq.write_table(table, folder / "train.parquet", row_group_size=100)


# -- loaders ----------------------------------------------------------------------------------------------------------


def measure_warm(
    report: Report, sets: dict[str, Callable[[Path], SampleIndex]], engine: str, protocol: Protocol, cache: Path
) -> None:
    """Streams of batches, side by side."""
    recipe = CACHED if engine == "cache" else CROPS
    streams: dict[str, Iterator[Any]] = {}
    for name, list_set in sets.items():
        loader = make_loader(list_set(cache), BATCH_SIZE, 224, engine=engine, cache_dir=cache, **recipe)
        streams[name] = loader.batches(0, ENDLESS)
    windows = {name: settle_stream(stream, protocol) for name, stream in streams.items()}
    seconds = interleave(windows, protocol.rounds)
    for stream in streams.values():
        stream.close()  # type: ignore[attr-defined]
    add_rows(report, engine, seconds, BATCH_SIZE)


def settle_stream(stream: Iterator[Any], protocol: Protocol) -> Window:
    """Windows of a stream, after what it has made ahead."""

    def time_batches(num_batches: int) -> float:
        began = time.perf_counter()
        for _ in range(num_batches):
            next(stream)
        return (time.perf_counter() - began) / num_batches

    time_batches(4 * available_cores())
    return settle_window(time_batches, protocol, available_cores())


def measure_cold(report: Report, sets: dict[str, Callable[[Path], SampleIndex]], rounds: int) -> None:
    """A pass over the pictures after the kernel forgot them."""
    with tempfile.TemporaryDirectory() as scratch:
        loaders = {
            name: make_loader(list_set(Path(scratch)), BATCH_SIZE, 224, engine="torchvision", workers=0, **CROPS)
            for name, list_set in sets.items()
        }

        def time_pass(name: str) -> float:
            loader = loaders[name]
            forget(loader.index)
            began = time.perf_counter()
            for _ in loader.batches(0, len(loader)):
                pass
            return (time.perf_counter() - began) / len(loader)

        seconds = interleave({name: lambda name=name: time_pass(name) for name in loaders}, rounds)  # type: ignore[misc]
    add_rows(report, "torchvision cold", seconds, BATCH_SIZE)


def forget(index: SampleIndex) -> None:
    """Ask the kernel to drop the pages of all files of an index."""
    names = index.paths if index.containers is None else index.containers.names
    for name in names:
        descriptor = os.open(index.root / name, os.O_RDONLY)
        os.fsync(descriptor)  # a page that is not written yet stays
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def add_rows(report: Report, what: str, seconds: dict[str, list[float]], images: int) -> None:
    """Images per second of each source, and the ratios to files."""
    for name, values in seconds.items():
        speed = Spread.of([images / value for value in values])
        report.rows.append({"what": what, "source": name, **describe_speed(speed)})
    for name in seconds.keys() - {"folder"}:
        pair = f"{name}/folder"
        target = f"; target {TARGETS[pair]:g}" if pair in TARGETS else ""
        spread = divide(seconds["folder"], seconds[name])
        report.add_ratio(f"{pair} {what}", spread, f"images per second, {what}{target}")


# -- lists ------------------------------------------------------------------------------------------------------------


def measure_listing(report: Report, sets: dict[str, Callable[[Path], SampleIndex]], folder: Path, rounds: int) -> None:
    """Pictures a second and core, each time with an empty cache folder."""
    for name, list_set in sets.items():
        rates = []
        for number in range(rounds):
            began = time.perf_counter()
            count = len(list_set(folder / f"list-{name}-{number}"))
            rates.append(count / (time.perf_counter() - began) / available_cores())
        report.rows.append({"what": "listed per core", "source": name, **describe_speed(Spread.of(rates))})


def measure_loading(report: Report, folder: Path, num_pictures: int) -> None:
    """Seconds and memory of a start that finds a large list."""
    pattern = write_large(folder, num_pictures)
    context = multiprocessing.get_context("spawn")  # processes of their own, so that nothing else is in their memory
    for is_kept in (False, True):  # the first start keeps what the second one finds
        with ProcessPoolExecutor(1, context) as pool:
            seconds, own_mib, *sent_mib = pool.submit(load_large, folder, pattern, is_kept).result()
    mapped_mib = next((folder / "cache").rglob("*.set")).stat().st_size / 2**20
    total = mapped_mib + own_mib + sum(sent_mib)
    report.rows.append({"what": f"load {num_pictures:,} pictures", "source": "tar", "seconds": seconds, "mib": total})
    copies = " and ".join(f"{mib:.0f}" for mib in sent_mib)
    report.notes.append(
        f"A list of {num_pictures:,} pictures is loaded in {seconds:.2f} s (target: 2 s). The list takes "
        f"{mapped_mib:.0f} MiB, which processes share. The process that loads it has {own_mib:.0f} MiB beside, "
        f"decoding processes have {copies} MiB: {total:.0f} MiB (target: 200)."
    )


def write_large(folder: Path, num_pictures: int) -> str:
    """Empty archives of the right size, and the list of an earlier start that says what lies in them; their pattern."""
    names = tuple(f"train-{number:04d}.tar" for number in range(NUM_SHARDS))
    bounds = np.linspace(0, num_pictures, NUM_SHARDS + 1).astype(np.int64)
    size = int(np.diff(bounds).max()) * 110_000
    folder.mkdir()
    for name in names:
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
    rows = []
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        for place, sample in enumerate(range(first, last)):
            label = f"n{sample % 1000:08d}"
            rows.append(Row(f"{label}/{label}_{sample}.JPEG", place * 110_000, 109_000, label, ""))
    times = np.array([(folder / name).stat().st_mtime_ns for name in names], np.int64)
    sizes = np.tile(np.array([500, 375], np.int32), (num_pictures, 1))
    listing = Listing(
        names, np.full(NUM_SHARDS, size), times, bounds, rows, sizes, np.ones(num_pictures, np.bool_), "cls"
    )
    write_listing(find_folder(folder / "cache", folder) / ArchiveSet(folder, names).file_name, listing)
    return f"train-{{0000..{NUM_SHARDS - 1:04d}}}.tar"


def load_large(folder: Path, pattern: str, is_measured: bool) -> tuple[float, ...]:
    """Seconds to the index, and MiB of its own that this process, and each decoding process that is sent it, has."""
    open_source("tar")  # imports
    before, began = count_anonymous(), time.perf_counter()
    index = list_large(folder, pattern)
    seconds = time.perf_counter() - began
    if not is_measured:
        return seconds, 0.0
    index.fingerprint()
    own_mib = count_anonymous() - before
    empty, *sent = (send(index.subset([])), *(send(index) for _ in range(DECODING_PROCESSES)))
    return seconds, own_mib, *(mib - empty for mib in sent)


def send(index: SampleIndex) -> float:
    """MiB of its own that a decoding process has once it was sent an index and has read it."""
    context = worker_context()
    mine, other = context.Pipe(duplex=False)
    process = context.Process(target=read_sent, args=(index, other))  # type: ignore[attr-defined]
    process.start()
    mib = float(mine.recv())
    process.join()
    return mib


def read_sent(index: SampleIndex, answer: Connection) -> None:
    """Look at all of an index."""
    places = index.containers
    assert places is not None
    arrays = (index.labels, index.sizes, index.byte_sizes, index.is_plain, places.numbers, places.offsets)
    for array in arrays:
        array.sum()
    for _ in index.paths:
        pass
    answer.send(count_anonymous())


def count_anonymous() -> float:
    """MiB of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 2**10


def list_large(folder: Path, pattern: str) -> SampleIndex:
    """The index of a start."""
    return make_index(folder, pattern, source="tar", cache_dir=folder / "cache")


if __name__ == "__main__":
    sys.exit(main())
