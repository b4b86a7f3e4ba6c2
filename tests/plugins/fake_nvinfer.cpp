// A libnvinfer with a plugin registry and a logger and nothing else, after NvInferRuntime.h: what the library that registers itself meets
// in a process that has loaded TensorRT. It notes what is registered, through which of the two interfaces.
#include <NvInfer.h>
#include <NvInferVersion.h>

#include <string>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace {

using namespace nvinfer1;

std::string theNotes;

class Log final : public ILogger {
    void log(Severity, char const* message) noexcept override { theNotes += std::string("log ") + message + "\n"; }
};

class Registry final : public IPluginRegistry {
public:
#if NV_TENSORRT_MAJOR < 11
    bool registerCreator(IPluginCreator& creator, AsciiChar const* const pluginNamespace) noexcept override {
        return note("V2", creator.getPluginName(), creator.getPluginVersion(), pluginNamespace);
    }
    IPluginCreator* const* getPluginCreatorList(int32_t* const numCreators) const noexcept override { return *numCreators = 0, nullptr; }
    IPluginCreator* getPluginCreator(AsciiChar const* const, AsciiChar const* const, AsciiChar const* const) noexcept override { return nullptr; }
    bool deregisterCreator(IPluginCreator const&) noexcept override { return false; }
#endif
    void setErrorRecorder(IErrorRecorder* const) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool const) override {}
    PluginLibraryHandle loadLibrary(AsciiChar const*) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
#if NV_TENSORRT_MAJOR >= 10
    bool registerCreator(IPluginCreatorInterface& creator, AsciiChar const* const pluginNamespace) noexcept override {
        auto& one = static_cast<IPluginCreatorV3One&>(creator);
        std::string const kind = creator.getInterfaceInfo().kind;
        return note(kind == "PLUGIN CREATOR_V3ONE" ? "V3" : kind.c_str(), one.getPluginName(), one.getPluginVersion(), pluginNamespace);
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t* const numCreators) const noexcept override { return *numCreators = 0, nullptr; }
    IPluginCreatorInterface* getCreator(AsciiChar const* const, AsciiChar const* const, AsciiChar const* const) noexcept override {
        return nullptr;
    }
    bool deregisterCreator(IPluginCreatorInterface const&) noexcept override { return false; }
    IPluginResource* acquirePluginResource(AsciiChar const*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(AsciiChar const*) noexcept override { return 0; }
#if NV_TENSORRT_MAJOR > 10 || NV_TENSORRT_MINOR >= 13
    IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t* const numCreators) noexcept override { return *numCreators = 0, nullptr; }
#endif
#endif

private:
    static bool note(char const* interface, char const* name, char const* version, char const* pluginNamespace) {
        theNotes += std::string(interface) + " " + name + " " + version + " '" + pluginNamespace + "'\n";
        return true;
    }
};

} // namespace

extern "C" {
__attribute__((visibility("default"))) nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
    static Registry registry;
    return &registry;
}
__attribute__((visibility("default"))) nvinfer1::ILogger* getLogger() noexcept {
    static Log log;
    return &log;
}
__attribute__((visibility("default"))) char const* registryNotes() { return theNotes.c_str(); }
}
