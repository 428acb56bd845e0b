"""Builds the package; all but the native CPU kernel is declared in pyproject.toml."""

from setuptools import Extension, setup

# Loaded with ctypes, see hyperst_kernels/cpu/native.py. Optional: without a compiler the PyTorch code runs instead.
native = Extension(
    "hyperst_kernels.cpu._native",
    ["hyperst_kernels/cpu/native.cpp"],
    depends=[f"hyperst_kernels/cpu/native_{part}.h" for part in ("tile", "operands", "pairs", "maps")],
    extra_compile_args=["-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"],
    extra_link_args=["-fopenmp"],
    optional=True,
)

setup(ext_modules=[native])
