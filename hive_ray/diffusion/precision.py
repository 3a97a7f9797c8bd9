"""The precision of models that only sample."""

import torch

from hive_ray.config import Precision

PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sampling_dtype(device: str | torch.device, precision: Precision = "auto") -> torch.dtype:
    """The dtype of a precision. "auto" is fp16 on a GPU, bf16 on a CPU with matrix units for it (AMX), else fp32."""
    if precision != "auto":
        return PRECISION_DTYPES[precision]
    if torch.device(device).type != "cpu":
        return torch.float16
    return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32
