"""The backend of the CPU: C++ kernels compiled when the package was installed."""

from __future__ import annotations

import torch

from sanrobust.kernels.fused import FusedBackend
from sanrobust.kernels.native import library


class NativeBackend(FusedBackend):
    """Compiled kernels for CPU tensors of float32 and float64, any shape and strides.

    Threads are those of ``torch.get_num_threads()``; no number depends on how many there are.
    """

    name = "native"
    device_type = "cpu"
    dtypes = (torch.float32, torch.float64)
    has_local_attention = True

    def unavailable(self) -> str | None:
        """Return why there are no compiled kernels; the first call loads them."""
        answer: str | None = _library_refusal()
        return answer


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _library_refusal() -> str | None:
    return library.refusal()
