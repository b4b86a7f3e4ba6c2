"""Latency, measured by trtexec's conventions so that figures can be compared."""
