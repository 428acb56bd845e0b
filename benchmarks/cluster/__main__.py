"""A step of the contrastive loss on 1 to 1024 GPUs: time, memory, operations and bytes of each scheme, as formulas say.

python -m benchmarks.cluster                              # prints tables
python -m benchmarks.cluster --device A100 --between "InfiniBand HDR" --dim 768
python -m benchmarks.cluster --write                      # puts them into docs/benchmarks.md
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.cluster import tables
from benchmarks.cluster.devices import DEVICES
from benchmarks.cluster.estimate import Cluster
from benchmarks.cluster.links import LINKS
from benchmarks.markdown import replace_between
from benchmarks.results import REPOSITORY

PAGE = REPOSITORY / "docs" / "benchmarks.md"
GPUS = (1, 8, 64, 1024)
BATCHES = (32 * 2**10, 2**20, 10 * 2**20, 100 * 2**20)
DIM = 512


def main(arguments: list[str] | None = None, page: Path = PAGE) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="H200")
    parser.add_argument("--within", choices=LINKS, help="between GPUs of a node (default: the device's NVLink)")
    parser.add_argument("--between", choices=LINKS, default="InfiniBand NDR", help="of each GPU to other nodes")
    parser.add_argument("--dim", type=int, default=DIM, help="features")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="rows on all GPUs together")
    parser.add_argument(
        "--write", action="store_true", help="write the tables, for the defaults, into docs/benchmarks.md"
    )
    options = parser.parse_args(arguments)
    for name in ("dim", "gpus", "batches"):
        given = getattr(options, name)
        if min([given] if isinstance(given, int) else given) < 1:
            parser.error(f"--{name} must be positive, got {given}")
    if options.write:
        write(page)
        return
    device = DEVICES[options.device]
    cluster = Cluster(device, LINKS[options.within or device.link], LINKS[options.between])
    for title, table in sections(cluster, options.gpus, options.batches, options.dim).items():
        print(f"{title}\n\n{table}\n")


def sections(cluster: Cluster, gpus: tuple[int, ...], batches: tuple[int, ...], dim: int) -> dict[str, str]:
    """Tables by their title."""
    where = f"{cluster.device.name}, {cluster.within.name} in nodes of {cluster.node}, {cluster.between.name}, D = {dim}, bf16"
    return {
        f"Time and memory of a step ({where}; {cluster.device.source})": tables.steps(cluster, gpus, batches, dim),
        "Operations and bytes of each GPU": tables.demands(cluster, gpus, batches, dim),
        "The largest batch whose loss fits": tables.largest(cluster, gpus, dim),
        "Memory of the loss as arXiv 2410.17243 publishes it, on A800": tables.published(),
    }


def write(page: Path) -> None:
    """Put the tables for the defaults into a page."""
    device = DEVICES["H200"]
    cluster = Cluster(device, LINKS[device.link], LINKS["InfiniBand NDR"])
    names = ("cluster steps", "cluster demands", "cluster largest", "cluster published")
    for name, table in zip(names, sections(cluster, GPUS, BATCHES, DIM).values(), strict=True):
        replace_between(page, name, table)


if __name__ == "__main__":
    main()
