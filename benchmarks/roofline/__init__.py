"""What the fused contrastive loss should take on a GPU, from counts of its compiled kernels: `python -m benchmarks.roofline`."""
