#include "driver.h"

#include "problem.h"

#include <dlfcn.h>

#include <cstdint>
#include <map>
#include <mutex>

namespace gmf_edge {
namespace {

// Blocks of up to 48 KB of shared memory may be launched as they are; more has to be asked for.
constexpr uint32_t kStaticSharedBytes = 48 * 1024;

struct Driver {
    CUresult (*init)(unsigned int){};
    CUresult (*ctxGetCurrent)(CUcontext*){};
    CUresult (*ctxGetDevice)(CUdevice*){};
    CUresult (*ctxPushCurrent)(CUcontext){};
    CUresult (*ctxPopCurrent)(CUcontext*){};
    // from CUDA 12 on: never used twice in a process, as a context's address may be
    CUresult (*ctxGetId)(CUcontext, unsigned long long*){};
    CUresult (*deviceGetAttribute)(int*, CUdevice_attribute, CUdevice){};
    CUresult (*moduleLoadData)(CUmodule*, void const*){};
    CUresult (*moduleUnload)(CUmodule){};
    CUresult (*moduleGetFunction)(CUfunction*, CUmodule, char const*){};
    CUresult (*funcSetAttribute)(CUfunction, CUfunction_attribute, int){};
    CUresult (*launchKernel)(CUfunction, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
        unsigned int, CUstream, void**, void**){};
    CUresult (*getErrorString)(CUresult, char const**){};
};

template <typename Function>
void find(void* library, char const* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (function == nullptr) {
        throw Problem(std::string("libcuda.so.1 has no ") + name, "install a newer NVIDIA driver");
    }
}

Driver loadDriver() {
    // kept open for the life of the process, as CUDA itself does
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        throw Problem("there is no NVIDIA driver on this machine (libcuda.so.1)", "install the driver, or run portable.onnx instead");
    }
    Driver driver;
    find(library, "cuInit", driver.init);
    find(library, "cuCtxGetCurrent", driver.ctxGetCurrent);
    find(library, "cuCtxGetDevice", driver.ctxGetDevice);
    find(library, "cuCtxPushCurrent_v2", driver.ctxPushCurrent);
    find(library, "cuCtxPopCurrent_v2", driver.ctxPopCurrent);
    driver.ctxGetId = reinterpret_cast<decltype(driver.ctxGetId)>(dlsym(library, "cuCtxGetId"));
    find(library, "cuDeviceGetAttribute", driver.deviceGetAttribute);
    find(library, "cuModuleLoadData", driver.moduleLoadData);
    find(library, "cuModuleUnload", driver.moduleUnload);
    find(library, "cuModuleGetFunction", driver.moduleGetFunction);
    find(library, "cuFuncSetAttribute", driver.funcSetAttribute);
    find(library, "cuLaunchKernel", driver.launchKernel);
    find(library, "cuGetErrorString", driver.getErrorString);
    return driver;
}

Driver const& theDriver() {
    // a failure throws and is tried again at the next call
    static Driver const driver = loadDriver();
    return driver;
}

void check(CUresult result, std::string const& what, std::string const& remedy) {
    if (result == CUDA_SUCCESS) {
        return;
    }
    char const* text = nullptr;
    theDriver().getErrorString(result, &text);
    throw Problem(what + ": " + (text != nullptr ? text : "unknown CUDA error " + std::to_string(result)), remedy);
}

CUcontext currentContext() {
    Driver const& driver = theDriver();
    check(driver.init(0), "CUDA does not start", "check the driver with nvidia-smi");
    CUcontext context = nullptr;
    check(driver.ctxGetCurrent(&context), "no CUDA context", "check the driver with nvidia-smi");
    if (context == nullptr) {
        throw Problem("the calling thread has no CUDA context", "call cudaSetDevice before using the engine on this thread");
    }
    return context;
}

unsigned long long identityOf(CUcontext context) {
    unsigned long long identity = reinterpret_cast<uintptr_t>(context);
    if (theDriver().ctxGetId != nullptr) {
        theDriver().ctxGetId(context, &identity);
    }
    return identity;
}

// Modules by context and digest: twelve layers of one width load it once.
std::shared_ptr<void> sharedModule(void const* cubin, std::string const& digest) {
    // never destroyed: plugins may outlive the end of main
    static auto& mutex = *new std::mutex;
    static auto& modules = *new std::map<std::pair<unsigned long long, std::string>, std::weak_ptr<void>>;
    std::lock_guard<std::mutex> const lock(mutex);
    CUcontext const context = currentContext();
    std::weak_ptr<void>& held = modules[{identityOf(context), digest}];
    if (std::shared_ptr<void> module = held.lock()) {
        return module;
    }
    CUmodule module = nullptr;
    check(theDriver().moduleLoadData(&module, cubin), "the driver refuses the kernel",
        "update the driver, or compile the kernels with an older ptxas");
    std::shared_ptr<void> loaded(module, [context](void* last) {
        // TensorRT may free the last user on a thread with another context; where this one is gone, so is its module
        if (theDriver().ctxPushCurrent(context) == CUDA_SUCCESS) {
            theDriver().moduleUnload(static_cast<CUmodule>(last));
            CUcontext popped = nullptr;
            theDriver().ctxPopCurrent(&popped);
        }
    });
    held = loaded;
    return loaded;
}

} // namespace

Device currentDevice() {
    currentContext();
    Driver const& driver = theDriver();
    CUdevice device = 0;
    check(driver.ctxGetDevice(&device), "no CUDA device", "check the driver with nvidia-smi");
    auto const attribute = [&](CUdevice_attribute name) {
        int value = 0;
        check(driver.deviceGetAttribute(&value, name, device), "the device says nothing of itself", "check the driver with nvidia-smi");
        return value;
    };
    int const major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    int const minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    return {static_cast<uint32_t>(10 * major + minor), attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)};
}

LoadedKernel::LoadedKernel(
    void const* cubin, std::string const& digest, std::string const& entry, uint32_t warps, uint32_t sharedBytes)
    : mModule(sharedModule(cubin, digest)), mThreads(32 * warps), mSharedBytes(sharedBytes) {
    Driver const& driver = theDriver();
    check(driver.moduleGetFunction(&mFunction, static_cast<CUmodule>(mModule.get()), entry.c_str()),
        "the kernel has no function " + entry, "compile the kernels again");
    if (sharedBytes > kStaticSharedBytes) {
        check(driver.funcSetAttribute(mFunction, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(sharedBytes)),
            "this GPU has no " + std::to_string(sharedBytes) + " bytes of shared memory for " + entry, "deploy without the plugin (--no-plugin)");
    }
}

void LoadedKernel::launch(uint32_t x, uint32_t y, uint32_t z, CUstream stream, void** arguments) const {
    check(theDriver().launchKernel(mFunction, x, y, z, mThreads, 1, 1, mSharedBytes, stream, arguments, nullptr), "the kernel did not start",
        "run again with CUDA_LAUNCH_BLOCKING=1, or deploy without the plugin (--no-plugin)");
}

} // namespace gmf_edge
