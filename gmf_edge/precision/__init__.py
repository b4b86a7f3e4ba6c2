"""Precision in the graph: FP16 by casts, INT8 by Q/DQ, and the measurements that justify them."""
