"""The CUDA backend: kernels in CUDA C++, compiled at first use through CuPy."""
