// What both plugin interfaces share: names, fields, types and the way errors reach TensorRT's log.
#pragma once

#include "launch_core.h"
#include "problem.h"

#include <NvInfer.h>
#include <NvInferVersion.h>

#include <cstring>
#include <string>
#include <vector>

namespace gmf_edge {

constexpr char kPluginName[] = "GmfGroupMixAttention";
constexpr char kPluginVersion[] = "1";
constexpr char kPluginNamespace[] = "";

// To TensorRT's logger where it gave one (setLoggerFinder), else to stderr.
void logError(char const* where, char const* what) noexcept;

// Who knows the logger; null for stderr.
void setFinder(nvinfer1::ILoggerFinder* finder);

// Runs `call`; a Problem becomes a line in the log and `failed`.
template <typename Result, typename Call>
Result guarded(char const* where, Result failed, Call&& call) noexcept {
    try {
        return call();
    } catch (std::exception const& problem) {
        logError(where, problem.what());
        return failed;
    }
}

// A node's attributes as TensorRT hands them over; missing ones stay zero and are refused by LaunchCore.
LaunchCore coreOf(nvinfer1::PluginFieldCollection const& fields);

// Names and types of the attributes, for a creator; the same for both interfaces.
nvinfer1::PluginFieldCollection const& fieldNames();

inline nvinfer1::DataType dataTypeOf(ElementType type) {
    switch (type) {
    case ElementType::kHALF: return nvinfer1::DataType::kHALF;
#if NV_TENSORRT_MAJOR >= 9
    case ElementType::kBF16: return nvinfer1::DataType::kBF16;
#endif
    case ElementType::kFLOAT: return nvinfer1::DataType::kFLOAT;
    default: throw Problem("this TensorRT has no type for these kernels", "compile them with --dtype fp16");
    }
}

// Tensor number `position` among inputs and outputs; of packed weights, `vectors` is FP32 whatever the kernels' type.
inline bool supports(LaunchCore const& core, int32_t position, nvinfer1::PluginTensorDesc const& tensor) {
    bool const isVectors = core.packed() && position == 1;
    nvinfer1::DataType const wanted = isVectors ? nvinfer1::DataType::kFLOAT : dataTypeOf(core.type());
    return tensor.format == nvinfer1::TensorFormat::kLINEAR && tensor.type == wanted;
}

} // namespace gmf_edge
