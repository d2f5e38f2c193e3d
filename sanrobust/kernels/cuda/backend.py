"""The backend of CUDA devices: kernels compiled by CuPy when they are first needed."""

from __future__ import annotations

import torch

from sanrobust.kernels.calls import Call
from sanrobust.kernels.cuda import compiler
from sanrobust.kernels.cuda.launch import FOOTPRINTS
from sanrobust.kernels.fused import FusedBackend


class CupyBackend(FusedBackend):
    """CUDA kernels for float32, float64, half and bfloat16 maps of any strides.

    Half and bfloat16 are accumulated in float32. All sums have one fixed order.
    """

    name = "cupy"
    device_type = "cuda"
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

    def unavailable(self) -> str | None:
        """Return why kernels cannot be compiled and run; the first call imports CuPy."""
        answer: str | None = _compiler_refusal()
        return answer

    def limits(self, call: Call) -> str | None:
        """Return why the kernels cannot take the call's tensors; None when they can."""
        if call.window.footprint not in FOOTPRINTS:
            return (f"the footprint is {call.window.footprint}, not one of "
                    f"{', '.join(map(str, FOOTPRINTS))}")
        return super().limits(call)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _compiler_refusal() -> str | None:
    return compiler.refusal()
