// The few calls of the CUDA driver that the plugin makes, found at run time: the library loads on a machine without a driver.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace gmf_edge {

// One device as the calling thread's context sees it.
struct Device {
    uint32_t arch; // 87 for sm_87
    int64_t multiprocessors;
};

// Throws Problem: no driver, or no current context.
Device currentDevice();

// A kernel in the context in which it was loaded; the module goes with its last user.
class LoadedKernel {
public:
    // Loads the cubin into the current context, or shares it with whoever loaded the same digest there. Throws Problem.
    LoadedKernel(void const* cubin, std::string const& digest, std::string const& entry, uint32_t warps, uint32_t sharedBytes);

    // Launches on a stream; arguments as cuLaunchKernel wants them. Throws Problem.
    void launch(uint32_t x, uint32_t y, uint32_t z, CUstream stream, void** arguments) const;

private:
    std::shared_ptr<void> mModule;
    CUfunction mFunction{};
    uint32_t mThreads{};
    uint32_t mSharedBytes{};
};

} // namespace gmf_edge
