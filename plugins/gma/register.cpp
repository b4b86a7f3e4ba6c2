// Registers the plugin by itself when the library is loaded, for programs that only dlopen it: Triton Inference Server
// (--backend-config=tensorrt,plugins=...), DeepStream, trtexec --staticPlugins, LD_PRELOAD.
//
// A library of its own: TensorRT's loadLibrary refuses one whose creators are registered already. libnvinfer is found in the process, so
// that nothing of TensorRT is linked and the library loads anywhere.
#include "tensorrt_common.h"

#include <NvInfer.h>
#include <NvInferVersion.h>
#include <dlfcn.h>

#include <cstdio>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

extern "C" {
#if NV_TENSORRT_MAJOR >= 10
nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators);
#else
nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& nbCreators);
#endif
}

namespace gmf_edge {
namespace {

#define GMF_TEXT_OF(x) #x
#define GMF_TEXT(x) GMF_TEXT_OF(x)
constexpr char kLibrary[] = "libnvinfer.so." GMF_TEXT(NV_TENSORRT_MAJOR);

class ProcessLogger final : public nvinfer1::ILoggerFinder {
public:
    nvinfer1::ILogger* findLogger() noexcept override { return mGetLogger != nullptr ? mGetLogger() : nullptr; }
    nvinfer1::ILogger* (*mGetLogger)() noexcept = nullptr;
};

template <typename Function>
Function* symbol(void* library, char const* name) {
    return reinterpret_cast<Function*>(dlsym(library, name));
}

// After the other constructors of this library, of which the creators need some.
__attribute__((constructor(65535))) void registerWithTensorRT() {
    // the one that the program uses, where it is loaded already: a second copy would have another registry
    void* library = dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD);
    if (library == nullptr) {
        library = dlopen(kLibrary, RTLD_NOW);
    }
    auto* const getRegistry = library == nullptr ? nullptr : symbol<nvinfer1::IPluginRegistry*() noexcept>(library, "getPluginRegistry");
    nvinfer1::IPluginRegistry* const registry = getRegistry == nullptr ? nullptr : getRegistry();
    if (registry == nullptr) {
        std::fprintf(stderr, "%s: not registered, because %s is not here; set LD_LIBRARY_PATH to TensorRT's libraries\n", kPluginName, kLibrary);
        return;
    }
    static ProcessLogger finder;
    finder.mGetLogger = symbol<nvinfer1::ILogger*() noexcept>(library, "getLogger");
    setFinder(&finder);
    int32_t count = 0;
#if NV_TENSORRT_MAJOR >= 10
    auto* const* creators = getCreators(count);
#else
    auto* const* creators = getPluginCreators(count);
#endif
    for (int32_t i = 0; i < count; ++i) {
        // false where another library registered the name already, which then serves
        registry->registerCreator(*creators[i], "");
    }
}

} // namespace
} // namespace gmf_edge
