"""What a step of the contrastive loss asks of many GPUs, by formulas and single-device rates: `python -m benchmarks.cluster`."""
