"""Forward + backward of the contrastive loss against its peers, in one process, interleaved.

    python -m benchmarks.contrastive [--batch 4096] [--dim 512] [--repeats 5] [--no-eager] [--no-compiled]

Peers are the eager textbook formulation, the same with one matrix for both directions under torch.compile, and the bare
matrix products that no method can do without: one forward and two backward. Prints the median time
of each, the ratios, that of ours to itself (noise), and the extra memory.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

import hyperst_kernels as hk
from tests.kernels import meru

Step = Callable[[], torch.Tensor]


def setup(batch: int, dim: int, device: str) -> dict[str, Step]:
    """One step (forward + backward) of each provider on the same unit-norm features."""
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(batch, dim, device=device), dim=-1) for _ in range(2))
    scale = torch.tensor(1 / 0.07, device=device, requires_grad=True)
    c = torch.tensor(1.0, device=device, requires_grad=True)

    def step(loss) -> torch.Tensor:
        leaves = [image.clone().requires_grad_(), text.clone().requires_grad_(), c, scale]
        value = loss(*leaves)
        torch.autograd.grad(value, leaves)
        if device == "cuda":
            torch.cuda.synchronize()
        return value.detach()

    return {
        "ours": lambda: step(hk.contrastive_loss),
        "eager MERU": lambda: step(meru.contrastive_loss),
        "compiled": lambda: step(torch.compile(meru.single_matrix_loss)),
    }


def products(batch: int, dim: int, device: str) -> Callable[[], None]:
    """The product of a forward pass and the two of a backward pass, on a matrix that is already there."""
    left, right = (torch.randn(batch, dim, device=device) for _ in range(2))
    matrix, out = torch.empty(batch, batch, device=device), torch.empty(batch, dim, device=device)

    def multiply() -> None:
        torch.mm(left, right.T, out=matrix)
        torch.mm(matrix, right, out=out)
        torch.mm(matrix.T, left, out=out)
        if device == "cuda":
            torch.cuda.synchronize()

    return multiply


def peak_megabytes() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-eager", action="store_true", help="leave out the peers whose memory grows with batch^2")
    parser.add_argument("--no-compiled", action="store_true", help="leave out the peer that needs a compiler")
    options = parser.parse_args()

    steps = setup(options.batch, options.dim, options.device)
    if options.no_eager:
        del steps["eager MERU"]
    if options.no_eager or options.no_compiled:
        del steps["compiled"]
    hk.contrastive_loss(torch.randn(64, options.dim), torch.randn(64, options.dim))  # load the libraries
    before = peak_megabytes()
    values = {"ours": float(steps["ours"]())}
    extra = peak_megabytes() - before
    gradients = 2 * options.batch * options.dim * 4 / 2**20
    for name, step in steps.items():
        values[name] = float(step())
    runs: dict[str, Callable[[], object]] = {**steps, "ours again": steps["ours"]}
    if not options.no_eager:
        runs["products"] = products(options.batch, options.dim, options.device)
        runs["products"]()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name in times:
            start = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(t) for name, t in times.items()}

    where = platform.processor() or platform.machine()
    print(f"{options.device} ({where}, {torch.get_num_threads()} threads), torch {torch.__version__}")
    print(f"B = {options.batch}, D = {options.dim}, float32, forward + backward, median of {options.repeats}")
    for name, median in medians.items():
        print(f"  {name:11} {median:8.3f} s   {medians['ours'] and median / medians['ours']:5.2f} x ours")
    print("  loss: " + ", ".join(f"{name} {value:.6f}" for name, value in values.items()))
    print(f"  resident memory grew by {extra:.0f} MB in the first step, {gradients:.0f} MB of it the two gradients")


if __name__ == "__main__":
    main()
