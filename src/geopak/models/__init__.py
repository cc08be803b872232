"""The network: two encoders, gated fusion, province, cell and offset heads, decoding."""
