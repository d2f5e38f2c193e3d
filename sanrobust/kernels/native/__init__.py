"""CPU kernels: C++ in ``src``, compiled by ``build`` and called through ``library``."""
