"""Tests of the device kernels alone, see `tests.kernels.backends`."""

from tests.kernels.backends import APPROXIMATE, AVAILABLE, DEVICE, INTERPRETED, documented

__all__ = ["APPROXIMATE", "AVAILABLE", "DEVICE", "INTERPRETED", "documented"]
