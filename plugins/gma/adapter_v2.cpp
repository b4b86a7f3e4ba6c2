#include "adapter_v2.h"

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace gmf_edge {
namespace {

// What an engine keeps of a node: this, then the kernels in base64.
struct Serialized {
    char magic[8];
    int32_t height;
    int32_t width;
    float scale;
    float epsilon;
    int32_t segmentDim;
    int32_t packed;
    uint64_t kernelsSize;
};
constexpr char kMagic[8] = {'G', 'M', 'F', 'A', 'T', 'T', '0', '1'};

} // namespace

nvinfer1::IPluginV2DynamicExt* PluginV2::clone() const noexcept {
    return guarded<nvinfer1::IPluginV2DynamicExt*>("clone", nullptr, [&] {
        // loaded kernels are shared with the copy
        auto* copy = new PluginV2(mCore);
        copy->mNamespace = mNamespace;
        return copy;
    });
}

nvinfer1::DimsExprs PluginV2::getOutputDimensions(
    int32_t, nvinfer1::DimsExprs const* inputs, int32_t, nvinfer1::IExprBuilder& exprBuilder) noexcept {
    nvinfer1::DimsExprs output(inputs[0]);
    output.d[2] = exprBuilder.constant(static_cast<int32_t>(kSegments * mCore.segmentDim()));
    return output;
}

bool PluginV2::supportsFormatCombination(int32_t pos, nvinfer1::PluginTensorDesc const* inOut, int32_t, int32_t) noexcept {
    return guarded("supportsFormatCombination", false, [&] { return supports(mCore, pos, inOut[pos]); });
}

void PluginV2::configurePlugin(
    nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
    // this interface cannot refuse here; initialize and enqueue do
    guarded("configurePlugin", 0, [&] {
        mCore.checkInputs(nbInputs, in[0].desc.dims.d[1], in[0].desc.dims.d[2]);
        return 0;
    });
}

size_t PluginV2::getWorkspaceSize(
    nvinfer1::PluginTensorDesc const* inputs, int32_t, nvinfer1::PluginTensorDesc const*, int32_t) const noexcept {
    return guarded("getWorkspaceSize", size_t{0}, [&] { return mCore.workspaceBytes(inputs[0].dims.d[0]); });
}

int32_t PluginV2::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guarded("enqueue", 1, [&] {
        mCore.checkInputs(mCore.inputs(), inputDesc[0].dims.d[1], inputDesc[0].dims.d[2]);
        mCore.enqueue(inputDesc[0].dims.d[0], inputs, outputs[0], workspace, stream);
        return 0;
    });
}

nvinfer1::DataType PluginV2::getOutputDataType(int32_t, nvinfer1::DataType const* inputTypes, int32_t) const noexcept {
    return inputTypes[0];
}

void PluginV2::attachToContext(cudnnContext*, cublasContext*, nvinfer1::IGpuAllocator*) noexcept {
    guarded("attachToContext", 0, [&] {
        mCore.load();
        return 0;
    });
}

int32_t PluginV2::initialize() noexcept {
    return guarded("initialize", 1, [&] {
        mCore.load();
        return 0;
    });
}

size_t PluginV2::getSerializationSize() const noexcept { return sizeof(Serialized) + mCore.kernelsBase64().size(); }

void PluginV2::serialize(void* buffer) const noexcept {
    Attributes const& a = mCore.attributes();
    std::string const& kernels = mCore.kernelsBase64();
    Serialized head{{}, a.height, a.width, a.scale, a.epsilon, a.segmentDim, a.packed, kernels.size()};
    std::memcpy(head.magic, kMagic, sizeof(kMagic));
    std::memcpy(buffer, &head, sizeof(head));
    std::memcpy(static_cast<char*>(buffer) + sizeof(head), kernels.data(), kernels.size());
}

nvinfer1::IPluginV2* CreatorV2::createPlugin(char const*, nvinfer1::PluginFieldCollection const* fc) noexcept {
    return guarded<nvinfer1::IPluginV2*>("createPlugin", nullptr, [&] {
        auto* plugin = new PluginV2(coreOf(*fc));
        plugin->setPluginNamespace(mNamespace.c_str());
        return plugin;
    });
}

nvinfer1::IPluginV2* CreatorV2::deserializePlugin(char const*, void const* serialData, size_t serialLength) noexcept {
    return guarded<nvinfer1::IPluginV2*>("deserializePlugin", nullptr, [&]() -> nvinfer1::IPluginV2* {
        Serialized head{};
        if (serialLength >= sizeof(head)) {
            std::memcpy(&head, serialData, sizeof(head));
        }
        if (std::memcmp(head.magic, kMagic, sizeof(kMagic)) != 0 || head.kernelsSize != serialLength - sizeof(head)) {
            throw Problem("the engine holds this node in another version's form", "build the engine again with 'gmf-edge deploy'");
        }
        std::string kernels(static_cast<char const*>(serialData) + sizeof(head), head.kernelsSize);
        auto* plugin = new PluginV2({{head.height, head.width, head.scale, head.epsilon, head.segmentDim, head.packed}, std::move(kernels)});
        plugin->setPluginNamespace(mNamespace.c_str());
        return plugin;
    });
}

} // namespace gmf_edge
