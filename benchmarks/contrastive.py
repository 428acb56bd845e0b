"""Forward + backward of the contrastive loss against the eager textbook formulation, in one process, interleaved.

    python -m benchmarks.contrastive [--batch 4096] [--dim 512] [--repeats 5] [--no-eager]

Prints the median time of each provider, their ratio, the ratio of a provider to itself (noise), and the extra memory.
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

    return {"ours": lambda: step(hk.contrastive_loss), "eager MERU": lambda: step(meru.contrastive_loss)}


def peak_megabytes() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-eager", action="store_true", help="leave out the peer whose memory grows with batch^2")
    options = parser.parse_args()

    steps = setup(options.batch, options.dim, options.device)
    if options.no_eager:
        del steps["eager MERU"]
    hk.contrastive_loss(torch.randn(64, options.dim), torch.randn(64, options.dim))  # load the libraries
    before = peak_megabytes()
    values = {"ours": float(steps["ours"]())}
    extra = peak_megabytes() - before
    gradients = 2 * options.batch * options.dim * 4 / 2**20
    for name, step in steps.items():
        values[name] = float(step())
    times: dict[str, list[float]] = {name: [] for name in [*steps, "ours again"]}
    for _ in range(options.repeats):
        for name in times:
            start = time.perf_counter()
            steps[name.removesuffix(" again")]()
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
