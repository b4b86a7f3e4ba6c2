"""OpenVINO: Intel and AMD CPUs, Arm CPUs, Intel's GPUs and NPUs.

settings     options, and what a device is told: threads, streams, arithmetic
compiled     a bundle's graph compiled for one batch size, from the model cache where it lies there
saturation   INT8 weights of 7 bits, for CPUs whose sums would saturate
layers       what the compiled model says of itself: precision and time of every layer
engine       inferences
backend      gmf_edge.engines.protocol.Backend of these
doctor       what OpenVINO sees on this machine
"""
