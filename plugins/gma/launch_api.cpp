// The launch code of the plugin behind C functions, without TensorRT: what benchmarks/ times and checks is what an engine launches.
//
// libgmf_edge_launch.so needs no header of TensorRT. Every function that can fail returns 0 or null and puts the reason into `error`.
#include "launch_core.h"
#include "problem.h"

#include <cstdio>
#include <exception>
#include <memory>
#include <string>

using gmf_edge::Attributes;
using gmf_edge::LaunchCore;

namespace {

template <typename Result, typename Call>
Result guarded(char* error, size_t size, Result failed, Call const& call) noexcept {
    try {
        return call();
    } catch (std::exception const& problem) {
        std::snprintf(error, size, "%s", problem.what());
    }
    return failed;
}

} // namespace

#define GMF_API extern "C" __attribute__((visibility("default")))

// A node; kernels is the attribute of that name, in base64.
GMF_API LaunchCore* gmfLaunchCreate(int32_t height, int32_t width, float scale, float epsilon, int32_t segmentDim, int32_t packed,
    char const* kernels, char* error, size_t errorSize) {
    return guarded<LaunchCore*>(error, errorSize, nullptr, [&] {
        Attributes attributes;
        attributes.height = height;
        attributes.width = width;
        attributes.scale = scale;
        attributes.epsilon = epsilon;
        attributes.segmentDim = segmentDim;
        attributes.packed = packed;
        return std::make_unique<LaunchCore>(attributes, kernels).release();
    });
}

GMF_API size_t gmfLaunchWorkspaceBytes(LaunchCore const* core, int64_t maxBatch) { return core->workspaceBytes(maxBatch); }

// Loads the kernels into the calling thread's CUDA context. Returns whether that went well.
GMF_API int gmfLaunchLoad(LaunchCore* core, char* error, size_t errorSize) {
    return guarded<int>(error, errorSize, 0, [&] {
        core->load();
        return 1;
    });
}

// As an engine's enqueue: device pointers of the node's inputs, its output and workspace; a CUDA stream, which may be captured.
GMF_API int gmfLaunchEnqueue(LaunchCore const* core, int64_t batch, void const* const* inputs, void* output, void* workspace, void* stream,
    char* error, size_t errorSize) {
    return guarded<int>(error, errorSize, 0, [&] {
        core->enqueue(batch, inputs, output, workspace, static_cast<CUstream>(stream));
        return 1;
    });
}

GMF_API void gmfLaunchDestroy(LaunchCore* core) { delete core; }
