"""All pairs, a block of the matrix at a time, in PyTorch calls on any device: losses, angles and neighbours without the matrix."""
