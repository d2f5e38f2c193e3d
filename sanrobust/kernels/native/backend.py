"""The backend of the CPU: C++ kernels compiled when the package was installed."""

from __future__ import annotations

import torch

from sanrobust.kernels.calls import Call
from sanrobust.kernels.fused import FusedBackend
from sanrobust.kernels.native import library


class NativeBackend(FusedBackend):
    """Compiled kernels for CPU tensors of float32 and float64, any shape and strides.

    Threads are those of ``torch.get_num_threads()``; no number depends on how many there are.
    """

    name = "native"
    device_type = "cpu"
    dtypes = (torch.float32, torch.float64)

    def unavailable(self) -> str | None:
        """Return why there are no compiled kernels; the first call loads them."""
        answer: str | None = _library_refusal()
        return answer

    def limits(self, call: Call) -> str | None:
        """Return why the kernels cannot take the call's tensors; None when they can."""
        if any(each.layout != torch.strided for each in call.tensors):
            return "the maps are not dense"
        if call.operation == "patchwise_attention" \
                and call.tensors[0].shape[1] != call.tensors[1].shape[1]:
            return "query and key have different numbers of channels"
        return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _library_refusal() -> str | None:
    return library.refusal()
