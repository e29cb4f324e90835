"""In which precision networks run."""

from __future__ import annotations

import torch


def half_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it fast, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if fast is not None and fast() else torch.float32


def autocast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """A context in which matrix products and convolutions run in `half_precision`, if it is wanted."""
    dtype = half_precision(device) if wanted else torch.float32
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
