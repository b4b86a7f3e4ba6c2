"""TensorRT, 8.6 to 11.x, in its parts.

backend    the way through them: choose a graph, build, prove, write, open
versions   what each version has; the guards that the API oracle reads
options    how to build; trtexec's spellings
build      graph -> engine bytes
inspect    engine -> layers and their precision; the proof
sidecar    what an engine was built for; refusal of foreign ones
run        the opened engine: NumPy in and out, GPU arrays without a copy, CUDA graphs, several streams
cuda       the CUDA calls of all these
doctor     what is here, what is missing, what to do
"""
