#include "adapter_v3.h"

#if NV_TENSORRT_MAJOR >= 10

namespace gmf_edge {

nvinfer1::IPluginCapability* PluginV3::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
    switch (type) {
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* PluginV3::clone() noexcept {
    return guarded<nvinfer1::IPluginV3*>("clone", nullptr, [&] { return new PluginV3(mCore); });
}

int32_t PluginV3::configurePlugin(
    nvinfer1::DynamicPluginTensorDesc const* in, int32_t nbInputs, nvinfer1::DynamicPluginTensorDesc const*, int32_t) noexcept {
    return guarded("configurePlugin", 1, [&] {
        mCore.checkInputs(nbInputs, in[0].desc.dims.d[1], in[0].desc.dims.d[2]);
        return 0;
    });
}

int32_t PluginV3::getOutputDataTypes(
    nvinfer1::DataType* outputTypes, int32_t, nvinfer1::DataType const* inputTypes, int32_t) const noexcept {
    outputTypes[0] = inputTypes[0];
    return 0;
}

int32_t PluginV3::getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t, nvinfer1::DimsExprs const*, int32_t,
    nvinfer1::DimsExprs* outputs, int32_t, nvinfer1::IExprBuilder& exprBuilder) noexcept {
    outputs[0] = inputs[0];
    outputs[0].d[2] = exprBuilder.constant(kSegments * mCore.segmentDim());
    return 0;
}

bool PluginV3::supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* inOut, int32_t, int32_t) noexcept {
    return guarded("supportsFormatCombination", false, [&] { return supports(mCore, pos, inOut[pos].desc); });
}

size_t PluginV3::getWorkspaceSize(
    nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t, nvinfer1::DynamicPluginTensorDesc const*, int32_t) const noexcept {
    return guarded("getWorkspaceSize", size_t{0}, [&] { return mCore.workspaceBytes(inputs[0].max.d[0]); });
}

int32_t PluginV3::onShapeChange(
    nvinfer1::PluginTensorDesc const* in, int32_t nbInputs, nvinfer1::PluginTensorDesc const*, int32_t) noexcept {
    return guarded("onShapeChange", 1, [&] {
        mCore.checkInputs(nbInputs, in[0].dims.d[1], in[0].dims.d[2]);
        return 0;
    });
}

int32_t PluginV3::enqueue(nvinfer1::PluginTensorDesc const* inputDesc, nvinfer1::PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guarded("enqueue", 1, [&] {
        mCore.enqueue(inputDesc[0].dims.d[0], inputs, outputs[0], workspace, stream);
        return 0;
    });
}

nvinfer1::IPluginV3* PluginV3::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
    return guarded<nvinfer1::IPluginV3*>("attachToContext", nullptr, [&] {
        LaunchCore core = mCore;
        core.load();
        return new PluginV3(std::move(core));
    });
}

nvinfer1::PluginFieldCollection const* PluginV3::getFieldsToSerialize() noexcept {
    return guarded<nvinfer1::PluginFieldCollection const*>("getFieldsToSerialize", nullptr, [&] {
        using nvinfer1::PluginFieldType;
        Attributes const& a = mCore.attributes();
        std::string const& kernels = mCore.kernelsBase64();
        mFields = {
            {"height", &a.height, PluginFieldType::kINT32, 1},
            {"width", &a.width, PluginFieldType::kINT32, 1},
            {"scale", &a.scale, PluginFieldType::kFLOAT32, 1},
            {"epsilon", &a.epsilon, PluginFieldType::kFLOAT32, 1},
            {"segment_dim", &a.segmentDim, PluginFieldType::kINT32, 1},
            {"packed", &a.packed, PluginFieldType::kINT32, 1},
            {"kernels", kernels.data(), PluginFieldType::kCHAR, static_cast<int32_t>(kernels.size())},
        };
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
        return &mCollection;
    });
}

nvinfer1::IPluginV3* CreatorV3::createPlugin(
    char const*, nvinfer1::PluginFieldCollection const* fc, nvinfer1::TensorRTPhase) noexcept {
    return guarded<nvinfer1::IPluginV3*>("createPlugin", nullptr, [&] { return new PluginV3(coreOf(*fc)); });
}

} // namespace gmf_edge

#endif
