"""int8 networks on CPUs: `IntegerGraph` -> fused kernels, bit for bit `quantize/reference.py`."""
