"""Proof that an engine behaves like its FP32 PyTorch model: metrics of logits and maps, golden data, and the parity report with its gate.

golden      what travels with a bundle: inputs and FP32 PyTorch's answers (maps: a backbone's)
inference   an engine's logits in batch sizes that it takes
batches     every batch size, row by row, on the golden images
parity      the evaluation images: accuracy, flips, errors (samples: what figures are drawn from)
judge       report against gate (accuracy: what the images can tell of a loss); proof: the golden data alone
metrics     functions of arrays
report      report.json
"""
