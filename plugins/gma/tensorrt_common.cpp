#include "tensorrt_common.h"

#include <atomic>
#include <cstdio>

namespace gmf_edge {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> theFinder{nullptr};

struct Field {
    char const* name;
    nvinfer1::PluginFieldType type;
};
// stacked_dim and three_head_dim serve the ONNX body only
constexpr Field kFields[] = {
    {"height", nvinfer1::PluginFieldType::kINT32},
    {"width", nvinfer1::PluginFieldType::kINT32},
    {"scale", nvinfer1::PluginFieldType::kFLOAT32},
    {"epsilon", nvinfer1::PluginFieldType::kFLOAT32},
    {"segment_dim", nvinfer1::PluginFieldType::kINT32},
    {"stacked_dim", nvinfer1::PluginFieldType::kINT32},
    {"three_head_dim", nvinfer1::PluginFieldType::kINT32},
    {"packed", nvinfer1::PluginFieldType::kINT32},
    {"kernels", nvinfer1::PluginFieldType::kCHAR},
};

template <typename Number>
Number numberOf(nvinfer1::PluginField const& field) {
    // a strongly typed 10.x parser hands INT attributes over as INT64 where it likes
    if (field.type == nvinfer1::PluginFieldType::kINT32) {
        int32_t value = 0;
        std::memcpy(&value, field.data, sizeof(value));
        return static_cast<Number>(value);
    }
    if (field.type == nvinfer1::PluginFieldType::kFLOAT32) {
        float value = 0.0F;
        std::memcpy(&value, field.data, sizeof(value));
        return static_cast<Number>(value);
    }
#if NV_TENSORRT_MAJOR >= 10
    if (field.type == nvinfer1::PluginFieldType::kINT64) {
        int64_t value = 0;
        std::memcpy(&value, field.data, sizeof(value));
        return static_cast<Number>(value);
    }
#endif
    throw Problem(std::string("attribute ") + field.name + " is not a number", "use the plugin.onnx that gmf-edge wrote");
}

} // namespace

void logError(char const* where, char const* what) noexcept {
    // stack memory only: this may report that memory ran out
    char line[1024];
    std::snprintf(line, sizeof(line), "%s: %s: %s", kPluginName, where, what);
    nvinfer1::ILoggerFinder* finder = theFinder.load();
    nvinfer1::ILogger* logger = finder != nullptr ? finder->findLogger() : nullptr;
    if (logger != nullptr) {
        logger->log(nvinfer1::ILogger::Severity::kERROR, line);
    } else {
        std::fprintf(stderr, "%s\n", line);
    }
}

void setFinder(nvinfer1::ILoggerFinder* finder) { theFinder.store(finder); }

LaunchCore coreOf(nvinfer1::PluginFieldCollection const& fields) {
    Attributes attributes;
    std::string kernels;
    for (int32_t i = 0; i < fields.nbFields; ++i) {
        nvinfer1::PluginField const& field = fields.fields[i];
        std::string const name = field.name;
        if (field.data == nullptr) {
            continue;
        }
        if (name == "height") {
            attributes.height = numberOf<int32_t>(field);
        } else if (name == "width") {
            attributes.width = numberOf<int32_t>(field);
        } else if (name == "segment_dim") {
            attributes.segmentDim = numberOf<int32_t>(field);
        } else if (name == "packed") {
            attributes.packed = numberOf<int32_t>(field);
        } else if (name == "scale") {
            attributes.scale = numberOf<float>(field);
        } else if (name == "epsilon") {
            attributes.epsilon = numberOf<float>(field);
        } else if (name == "kernels") {
            // some parsers count a terminating NUL, some hand over none
            auto const* text = static_cast<char const*>(field.data);
            kernels.assign(text, static_cast<size_t>(std::max<int32_t>(field.length, 0)));
            kernels.resize(std::strlen(kernels.c_str()));
        }
    }
    return {attributes, std::move(kernels)};
}

nvinfer1::PluginFieldCollection const& fieldNames() {
    static std::vector<nvinfer1::PluginField> const fields = [] {
        std::vector<nvinfer1::PluginField> list;
        for (Field const& field : kFields) {
            list.emplace_back(field.name, nullptr, field.type, 1);
        }
        return list;
    }();
    static nvinfer1::PluginFieldCollection const collection{static_cast<int32_t>(fields.size()), fields.data()};
    return collection;
}

} // namespace gmf_edge
