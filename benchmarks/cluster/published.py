"""What others have measured, for the formulas to agree with: memory of the loss in tables 1 and 2 of Inf-CL's paper.

Cheng et al., "Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss", arXiv 2410.17243, on A800 of
80 GB. D is 768 for ViT-L/14 and 512 for ViT-B/16; k is 1024 rows. Features are taken to be float32, as in Inf-CL's released code.
A gigabyte of these tables is read as 1000 MiB: of 10^9, 1000 * 2^20 and 2^30 bytes it is what puts open_clip's formula, which has
no free number, within 1 %. Inf-CL's 15 matrices are fitted to table 1, as are the 17 where batches wait in the memory of the CPU
("data offload"); table 2 is not used for that. The paper has times of whole steps only, in a figure: none of the loss to compare.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.cluster.schemes import INF_CL, SCHEMES, Problem

GIGABYTE = 1000 * 2**20
OFFLOADED = 17  # float32 matrices (n, D)


class Point(NamedTuple):
    """Gigabytes of the loss on one of ``ranks`` GPUs, for a batch of ``thousands`` times 1024 rows."""

    scheme: str
    ranks: int
    thousands: int
    gigabytes: float
    dim: int = 768
    offloaded: bool = False

    def predicted(self) -> float:
        """Gigabytes by the formula of `benchmarks.cluster.schemes`."""
        problem = Problem(self.thousands * 1024, self.ranks, self.dim, itemsize=4)
        memory = SCHEMES[self.scheme].memory(problem)
        return (memory * OFFLOADED / INF_CL if self.offloaded else memory) / GIGABYTE


TABLE_1 = (
    Point("open_clip", 8, 32, 2.27),
    Point("open_clip", 8, 64, 8.63),
    Point("open_clip", 8, 128, 33.64),
    Point("open_clip", 32, 32, 0.71),
    Point("open_clip", 32, 64, 2.45),
    Point("open_clip", 32, 128, 8.98),
    Point("open_clip", 32, 256, 34.35),
    Point("Inf-CL", 8, 32, 0.18),
    Point("Inf-CL", 8, 64, 0.36),
    Point("Inf-CL", 8, 128, 0.72),
    Point("Inf-CL", 8, 256, 1.45),
    Point("Inf-CL", 32, 32, 0.05),
    Point("Inf-CL", 32, 64, 0.09),
    Point("Inf-CL", 32, 128, 0.18),
    Point("Inf-CL", 32, 256, 0.35),
    Point("Inf-CL", 32, 1024, 1.44),
    Point("Inf-CL", 8, 1024, 6.53, offloaded=True),
)
# the largest batches that fitted, beside the model; open_clip's 368k on 32 is left out, as it repeats the gigabytes of 352k
TABLE_2 = (
    Point("open_clip", 8, 172, 59.95, dim=512),
    Point("open_clip", 32, 360, 66.29, dim=512),
    Point("open_clip", 8, 152, 47.23),
    Point("open_clip", 32, 352, 64.13),
    Point("open_clip", 8, 184, 69.10),
    Point("Inf-CL", 8, 800, 3.01, dim=512),
    Point("Inf-CL", 32, 3456, 3.27, dim=512),
    Point("Inf-CL", 8, 448, 2.52),
    Point("Inf-CL", 32, 2048, 2.89),
    Point("Inf-CL", 8, 4096, 26.12, offloaded=True),
    Point("Inf-CL", 32, 12288, 19.59, offloaded=True),
)
