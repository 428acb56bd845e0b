"""The device kernels as Triton compiles them for an NVIDIA GPU, executed on a CPU.

Triton's interpreter runs the source of a kernel; a GPU runs what the compiler made of it, where multiplications and
additions are fused, work is laid out over threads, and data pass through shared memory. Here a kernel is compiled to PTX,
the assembly language of NVIDIA GPUs, for sm_80, and that PTX is executed with NumPy.

``arithmetic``           numbers, bit by bit
``program``              reads PTX and decodes it to steps, and finds where branches meet again
``instructions``         instructions on the registers of one thread
``memory_instructions``  loads, stores, atomic additions, copies in the background
``warp_instructions``    barriers, and what threads of a warp do together: shuffles, matrix products
``memory``               global and shared memory, and who touched what: races, data nobody wrote, accesses outside
``machine``              a block of threads that executes a program
``launch``               in place of Triton's driver: ``with running() as run: ...; run.findings``

``HYPERST_TEST_PTX=1 python -m pytest tests/kernels/ptx`` runs the tests: in a process of their own, because the library
registers its kernels for the CPU when it is imported. ``tests/kernels/test_interpreter.py`` starts it.
"""

import os

AVAILABLE = os.environ.get("HYPERST_TEST_PTX") == "1"
