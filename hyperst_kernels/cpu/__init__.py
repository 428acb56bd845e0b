"""CPU kernels: only what the reference is too slow or too large in memory for. The same code runs on any device."""
