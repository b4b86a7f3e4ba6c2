"""How fast engines are, by trtexec's conventions so that figures can be compared, and whether the faster one is worth it.

calls      single calls: what they are given, how long each takes
latency    latency and throughput of one engine (times: statistics; median: how sure a median is; trtexec_files: trtexec's JSON)
device     the GPU's state meanwhile; load: what else the CPU did; energy: what it took
compare    two engines, or several: which is delivered
in_turn    several engines timed alike, among them the baselines (plain_model: what those run)
"""
