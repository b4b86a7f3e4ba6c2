"""TensorRT, 8.6 to 11.x, in its parts.

backend    the way through them: choose a graph, build, prove, write, open
versions   what each version has; the guards that the API oracle reads
options    how to build; trtexec's spellings
build      graph -> engine bytes (config: the builder's configuration; islands: what 8.6 must keep in FP32)
progress   the build's phases as a fraction and the time left; log: TensorRT's messages
inspect    engine -> layers and their precision
proof      is it the precision that was asked for
sidecar    what an engine was built for; refusal of foreign ones
load       engine bytes -> TensorRT's engine, with its plugins and weights; plugins: which creators are there
tensors    what goes in and out of it
run        the opened engine: NumPy in and out, GPU arrays without a copy, several streams
lane       one of its streams: buffers, CUDA graphs, times; trace: inferences back to back, with the times of their steps
contexts   the execution contexts of a stream, and the memory that they share
arrays     GPU arrays of other libraries
cuda       the CUDA calls of all these
cuda_context   whose a pointer or a stream is, and the context that an engine runs in
doctor     what is here, what is missing, what to do
smoke      whether CUDA works here, on a few bytes
stock      a plain export as trtexec would build it, to be measured against
"""
