// A CUDA driver that computes nothing: it hands out what the plugin asks for and notes every launch.
//
// Each launch also writes over all memory that the real kernel writes, so that AddressSanitizer sees a workspace that is too small.
#include "mock_cuda.h"

#include <cuda.h>

#include <cstring>

namespace {

mock::State theState;

struct Module {
    std::string bytes;
};
struct Function {
    std::string entry;
};

int32_t intAt(void** arguments, int index) { return *static_cast<int32_t*>(arguments[index]); }
void* pointerAt(void** arguments, int index) { return *static_cast<void**>(arguments[index]); }

// S of the fake kernels; their type is FP16
constexpr size_t kSegment = 16;
constexpr size_t kPadded = 16;

void note(mock::Launch& launch, void** arguments) {
    if (launch.entry == "pack_weights") {
        for (int i = 0; i < 23; ++i) {
            launch.pointers.push_back(pointerAt(arguments, i));
        }
        std::memset(launch.pointers[19], 1, 251 * kPadded * 4);
        std::memset(launch.pointers[20], 2, 6 * kPadded * kPadded * 2);
        return;
    }
    // inputs, integers, outputs, then the two of Triton's own; an entry is named after its kernel and tiling
    bool const first = launch.entry.rfind("aggregate", 0) == 0;
    int const integersAt = first ? 3 : 4;
    for (int i = 0; i < (first ? 11 : 10); ++i) {
        if (i >= integersAt && i < integersAt + 3) {
            launch.integers.push_back(intAt(arguments, i));
        } else {
            launch.pointers.push_back(pointerAt(arguments, i));
        }
    }
    size_t const tokens = launch.grid[2] * static_cast<size_t>(launch.integers[0]) * static_cast<size_t>(launch.integers[1]);
    if (first) {
        std::memset(launch.pointers[3], 3, tokens * 4 * kSegment * 2);
        std::memset(launch.pointers[4], 4, launch.grid[2] * launch.grid[0] * 4 * kSegment * (2 + kSegment / 2) * 4);
        // q', and x_agg0: the last S of each token's 5S channels
        for (size_t n = 0; n < tokens; ++n) {
            std::memset(static_cast<char*>(launch.pointers[5]) + n * 5 * kSegment * 2, 7, 4 * kSegment * 2);
            std::memset(static_cast<char*>(launch.pointers[5]) + (n * 5 + 4) * kSegment * 2, 5, kSegment * 2);
        }
    } else {
        for (size_t n = 0; n < tokens; ++n) {
            std::memset(static_cast<char*>(launch.pointers[4]) + n * 5 * kSegment * 2, 6, 4 * kSegment * 2);
        }
    }
}

} // namespace

extern "C" {

mock::State* mockState() { return &theState; }

CUresult cuInit(unsigned int) { return CUDA_SUCCESS; }

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = theState.context ? reinterpret_cast<CUcontext>(&theState) : nullptr;
    return CUDA_SUCCESS;
}

#undef cuCtxPushCurrent
#undef cuCtxPopCurrent
CUresult cuCtxPushCurrent_v2(CUcontext) {
    ++theState.contextsPushed;
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    --theState.contextsPushed;
    *context = reinterpret_cast<CUcontext>(&theState);
    return CUDA_SUCCESS;
}

CUresult cuCtxGetId(CUcontext, unsigned long long* identity) {
    *identity = theState.contextId;
    return CUDA_SUCCESS;
}

#undef cuCtxGetDevice
CUresult cuCtxGetDevice(CUdevice* device) {
    *device = 0;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = theState.arch / 10; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = theState.arch % 10; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = theState.multiprocessors; return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuModuleLoadData(CUmodule* module, void const* image) {
    if (theState.refuse) {
        return CUDA_ERROR_INVALID_IMAGE;
    }
    theState.lastImage = static_cast<char const*>(image);
    *module = reinterpret_cast<CUmodule>(new Module{theState.lastImage});
    ++theState.modulesLoaded;
    ++theState.modulesAlive;
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) {
    if (theState.contextsPushed != 1) {
        return CUDA_ERROR_INVALID_CONTEXT;
    }
    delete reinterpret_cast<Module*>(module);
    --theState.modulesAlive;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction* function, CUmodule, char const* name) {
    // one per name for the life of the process, as functions belong to their modules
    static auto& functions = *new std::vector<Function*>;
    for (Function* known : functions) {
        if (known->entry == name) {
            *function = reinterpret_cast<CUfunction>(known);
            return CUDA_SUCCESS;
        }
    }
    functions.push_back(new Function{name});
    *function = reinterpret_cast<CUfunction>(functions.back());
    return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute attribute, int value) {
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        theState.largestSharedBytes = value;
    }
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned int x, unsigned int y, unsigned int z, unsigned int threads, unsigned int,
    unsigned int, unsigned int sharedBytes, CUstream stream, void** arguments, void**) {
    if (theState.failLaunch) {
        return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    }
    mock::Launch launch{reinterpret_cast<Function*>(function)->entry, {x, y, z}, threads, sharedBytes, stream, {}, {}};
    note(launch, arguments);
    theState.launches.push_back(std::move(launch));
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, char const** text) {
    *text = error == CUDA_ERROR_INVALID_IMAGE ? "device kernel image is invalid" : "mock error";
    return CUDA_SUCCESS;
}

} // extern "C"
