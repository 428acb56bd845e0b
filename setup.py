"""Builds the package; all but the native CPU kernel is declared in pyproject.toml."""

import runpy

from setuptools import Extension, setup

CONSTANTS = runpy.run_path("hyperst_kernels/_constants.py")
NATIVE = "hyperst_kernels/cpu/native/"

# Loaded with ctypes, see bindings.py beside it. Optional: without a compiler the PyTorch code runs instead.
native = Extension(
    "hyperst_kernels.cpu.native._library",
    [NATIVE + "library.cpp"],
    depends=[
        "hyperst_kernels/_constants.py",
        *(f"{NATIVE}{part}.h" for part in ("tile", "pairs", "angles", "operands", "rows", "maps", "blocks", "terms")),
    ],
    define_macros=[
        ("GEOMETRIES", ", ".join(name.upper() for name in CONSTANTS["GEOMETRIES"])),
        *((name, str(CONSTANTS[name])) for name in ("CHUNK", "STRIP", "SIGNATURES")),
    ],
    extra_compile_args=["-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"],
    extra_link_args=["-fopenmp"],
    optional=True,
)

setup(ext_modules=[native])
