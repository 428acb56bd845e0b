"""Triton kernels. Modules are imported when a kernel is first launched: importing the library needs no GPU."""
