"""GPU kernels: sources, launch geometry, ahead-of-time compilation. Importing this package needs neither triton nor a GPU."""
