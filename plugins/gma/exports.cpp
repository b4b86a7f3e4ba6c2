// What TensorRT looks for in a plugin library: getPluginCreators (8.6), getCreators (10 and newer), setLoggerFinder.
#include "adapter_v2.h"
#include "adapter_v3.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

#ifdef GMF_EDGE_REGISTERED
// register.cpp hands the creators over itself, and TensorRT must not find a second way to them
#define GMF_EXPORT extern "C" __attribute__((visibility("hidden")))
#else
#define GMF_EXPORT extern "C" __attribute__((visibility("default")))
#endif

GMF_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { gmf_edge::setFinder(finder); }

GMF_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& nbCreators) {
    static gmf_edge::CreatorV2 creator;
    static nvinfer1::IPluginCreator* const creators[] = {&creator};
    nbCreators = 1;
    return creators;
}

#if NV_TENSORRT_MAJOR >= 10
// The newer interface alone: two creators of one name and version would be in each other's way.
GMF_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& nbCreators) {
    static gmf_edge::CreatorV3 creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    nbCreators = 1;
    return creators;
}
#endif
