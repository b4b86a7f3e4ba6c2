// A network definition for the real ONNX parser of TensorRT 8.6 on a machine without a GPU, where no builder starts: it notes the layers
// that the parser adds and infers their shapes, after NvInfer.h of 8.6. The parser asks a network for nothing else.
//
//   parse_on_8 GRAPH [PLUGIN_LIBRARY]   prints what the parser made of the graph as JSON; a dynamic batch is 1
#include "stubs.h" // the interfaces of NvInferImpl.h with empty methods, made by the test

#include <NvInfer.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

using namespace nvinfer1;

namespace {

std::string theErrors;

void complain(std::string const& text) { theErrors += text + "; "; }

struct Layer;

struct Tensor final : ITensor, stubs::VTensor {
    Tensor(Layer* owner, DataType type, Dims dims = {}) : owner(owner), type(type), dims(dims) { mImpl = this; }
    void setName(char const* given) noexcept override { name = given; }
    char const* getName() const noexcept override { return name.c_str(); }
    Dims getDimensions() const noexcept override;
    DataType getType() const noexcept override { return type; }
    void setType(DataType given) noexcept override { type = given; }
    bool isExecutionTensor() const noexcept override { return true; }
    Layer* owner;
    DataType type;
    Dims dims;
    std::string name;
};

struct Layer : stubs::VLayer {
    Layer(LayerType kind, std::vector<ITensor*> given) : kind(kind), inputs(std::move(given)) {}
    virtual Dims infer() const { return inputs[0]->getDimensions(); }
    LayerType getType() const noexcept override { return kind; }
    void setName(char const* given) noexcept override { name = given; }
    char const* getName() const noexcept override { return name.c_str(); }
    void setMetadata(char const* given) noexcept override { metadata = given; }
    char const* getMetadata() const noexcept override { return metadata.c_str(); }
    int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(inputs.size()); }
    ITensor* getInput(int32_t index) const noexcept override { return inputs[index]; }
    int32_t getNbOutputs() const noexcept override { return 1; }
    ITensor* getOutput(int32_t) const noexcept override { return output.get(); }
    void setInput(int32_t index, ITensor& tensor) noexcept override {
        inputs.resize(std::max<size_t>(inputs.size(), index + 1));
        inputs[index] = &tensor;
        known = false;
    }
    void setOutputType(int32_t, DataType type) noexcept override { output->type = type; }
    void produce(DataType type) { output = std::make_unique<Tensor>(this, type); }
    LayerType kind;
    std::vector<ITensor*> inputs;
    std::unique_ptr<Tensor> output;
    std::string name, metadata;
    // inferred once: residuals double the paths back with every block
    bool known = false;
    Dims inferred{};
};

Dims Tensor::getDimensions() const noexcept {
    if (owner != nullptr && !owner->known) {
        owner->inferred = owner->infer();
        owner->known = true;
    }
    return owner == nullptr ? dims : owner->inferred;
}

// I: the interface that the parser sees, V: what it calls
template <typename I, typename V>
struct Of : I, V, Layer {
    Of(LayerType kind, std::vector<ITensor*> given) : Layer(kind, std::move(given)) {
        this->mLayer = static_cast<apiv::VLayer*>(static_cast<Layer*>(this));
        this->mImpl = static_cast<V*>(this);
    }
};

Dims broadcast(Dims a, Dims b, int32_t first, int32_t last) {
    if (a.nbDims != b.nbDims) {
        complain("ranks " + std::to_string(a.nbDims) + " and " + std::to_string(b.nbDims));
    }
    Dims out = a;
    for (int32_t i = first; i < last; ++i) {
        if (a.d[i] != b.d[i] && a.d[i] != 1 && b.d[i] != 1) {
            complain("dimensions " + std::to_string(a.d[i]) + " and " + std::to_string(b.d[i]));
        }
        out.d[i] = std::max(a.d[i], b.d[i]);
    }
    return out;
}

int64_t volume(Dims dims) {
    int64_t total = 1;
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        total *= dims.d[i];
    }
    return total;
}

struct Convolution final : Of<IConvolutionLayer, stubs::VConvolutionLayer> {
    using Of::Of;
    void setStrideNd(Dims given) noexcept override { stride = given, known = false; }
    void setPrePadding(Dims given) noexcept override { before = given, known = false; }
    void setPostPadding(Dims given) noexcept override { after = given, known = false; }
    void setDilationNd(Dims given) noexcept override { dilation = given, known = false; }
    void setNbGroups(int32_t given) noexcept override { groups = given, known = false; }
    Dims infer() const override {
        Dims out = inputs[0]->getDimensions();
        if (weights.count != int64_t{maps} * (out.d[1] / groups) * volume(kernel)) {
            complain("a convolution of " + std::to_string(weights.count) + " weights for " + std::to_string(out.d[1]) + " channels");
        }
        out.d[1] = maps;
        for (int32_t i = 0; i < kernel.nbDims; ++i) {
            int32_t const reach = dilation.d[i] * (kernel.d[i] - 1) + 1;
            out.d[i + 2] = (out.d[i + 2] + before.d[i] + after.d[i] - reach) / stride.d[i] + 1;
        }
        return out;
    }
    int32_t maps = 0, groups = 1;
    Weights weights{};
    Dims kernel{}, stride{}, before{}, after{}, dilation{};
};

struct Shuffle final : Of<IShuffleLayer, stubs::VShuffleLayer> {
    using Of::Of;
    void setFirstTranspose(Permutation const& given) noexcept override { first = given, hasFirst = true, known = false; }
    void setSecondTranspose(Permutation const& given) noexcept override { second = given, hasSecond = true, known = false; }
    void setReshapeDimensions(Dims given) noexcept override { shape = given, hasShape = true, known = false; }
    void setZeroIsPlaceholder(bool given) noexcept override { zeroCopies = given, known = false; }
    static Dims moved(Dims dims, Permutation const& order) {
        Dims out = dims;
        for (int32_t i = 0; i < dims.nbDims; ++i) {
            out.d[i] = dims.d[order.order[i]];
        }
        return out;
    }
    Dims infer() const override {
        Dims dims = inputs[0]->getDimensions();
        if (inputs.size() > 1) {
            complain("a reshape by a tensor");
        }
        dims = hasFirst ? moved(dims, first) : dims;
        if (hasShape) {
            Dims out = shape;
            int32_t open = -1;
            for (int32_t i = 0; i < out.nbDims; ++i) {
                out.d[i] = out.d[i] == 0 && zeroCopies ? dims.d[i] : out.d[i];
                open = out.d[i] == -1 ? i : open;
            }
            if (open >= 0) {
                out.d[open] = 1;
                out.d[open] = static_cast<int32_t>(volume(dims) / std::max<int64_t>(volume(out), 1));
            }
            if (volume(out) != volume(dims)) {
                complain("a reshape of " + std::to_string(volume(dims)) + " elements to " + std::to_string(volume(out)));
            }
            dims = out;
        }
        return hasSecond ? moved(dims, second) : dims;
    }
    Permutation first{}, second{};
    Dims shape{};
    bool hasFirst = false, hasSecond = false, hasShape = false, zeroCopies = true;
};

struct MatrixMultiply final : Of<IMatrixMultiplyLayer, stubs::VMatrixMultiplyLayer> {
    using Of::Of;
    Dims infer() const override {
        Dims a = inputs[0]->getDimensions(), b = inputs[1]->getDimensions();
        int32_t const last = a.nbDims - 1;
        auto const turn = [&](Dims& dims, MatrixOperation op) {
            if (op == MatrixOperation::kTRANSPOSE) {
                std::swap(dims.d[last], dims.d[last - 1]);
            }
        };
        turn(a, opA);
        turn(b, opB);
        if (a.d[last] != b.d[last - 1]) {
            complain("a product over " + std::to_string(a.d[last]) + " and " + std::to_string(b.d[last - 1]));
        }
        Dims out = broadcast(a, b, 0, last - 1);
        out.d[last - 1] = a.d[last - 1];
        out.d[last] = b.d[last];
        return out;
    }
    MatrixOperation opA{}, opB{};
};

struct ElementWise final : Of<IElementWiseLayer, stubs::VElementWiseLayer> {
    using Of::Of;
    Dims infer() const override {
        Dims const a = inputs[0]->getDimensions();
        return broadcast(a, inputs[1]->getDimensions(), 0, a.nbDims);
    }
};

struct Concatenation final : Of<IConcatenationLayer, stubs::VConcatenationLayer> {
    using Of::Of;
    void setAxis(int32_t given) noexcept override { axis = given, known = false; }
    Dims infer() const override {
        Dims out = inputs[0]->getDimensions();
        for (size_t i = 1; i < inputs.size(); ++i) {
            out.d[axis] += inputs[i]->getDimensions().d[axis];
        }
        return out;
    }
    int32_t axis = 0;
};

struct Slice final : Of<ISliceLayer, stubs::VSliceLayer> {
    using Of::Of;
    Dims infer() const override { return size; }
    Dims size{};
};

struct Reduce final : Of<IReduceLayer, stubs::VReduceLayer> {
    using Of::Of;
    Dims infer() const override {
        Dims out = inputs[0]->getDimensions();
        for (int32_t i = 0; i < out.nbDims; ++i) {
            out.d[i] = (axes >> i & 1U) != 0 ? 1 : out.d[i];
        }
        return out;
    }
    uint32_t axes = 0;
};

struct Constant final : Of<IConstantLayer, stubs::VConstantLayer> {
    using Of::Of;
    Dims infer() const override { return dims; }
    Weights getWeights() const noexcept override { return weights; }
    Dims dims{};
    Weights weights{};
};

struct Normalization final : Of<INormalizationLayer, stubs::VNormalizationLayer> {
    using Of::Of;
    void setComputePrecision(DataType given) noexcept override { compute = given; }
    Dims infer() const override {
        Dims const x = inputs[0]->getDimensions();
        broadcast(x, inputs[1]->getDimensions(), 0, x.nbDims);
        return x;
    }
    DataType compute = DataType::kFLOAT;
};

using Activation = Of<IActivationLayer, stubs::VActivationLayer>;
using Unary = Of<IUnaryLayer, stubs::VUnaryLayer>;
using SoftMax = Of<ISoftMaxLayer, stubs::VSoftMaxLayer>;
using Identity = Of<IIdentityLayer, stubs::VIdentityLayer>;
using CastTo = Of<ICastLayer, stubs::VCastLayer>;
using Quantize = Of<IQuantizeLayer, stubs::VQuantizeLayer>;
using Dequantize = Of<IDequantizeLayer, stubs::VDequantizeLayer>;

// dimensions as the plugin asks for them
struct Extent final : IDimensionExpr, apiv::VDimensionExpr {
    explicit Extent(int32_t given) : value(given) { mImpl = this; }
    bool isConstant() const noexcept override { return true; }
    int32_t getConstantValue() const noexcept override { return value; }
    int32_t value;
};
struct Extents final : IExprBuilder, apiv::VExprBuilder {
    Extents() { mImpl = this; }
    IDimensionExpr const* constant(int32_t value) noexcept override {
        owned.push_back(std::make_unique<Extent>(value));
        return owned.back().get();
    }
    IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) noexcept override { return nullptr; }
    std::deque<std::unique_ptr<Extent>> owned;
};

struct Plugin final : Of<IPluginV2Layer, stubs::VPluginV2Layer> {
    using Of::Of;
    Dims infer() const override {
        Extents builder;
        std::vector<DimsExprs> given(inputs.size());
        for (size_t i = 0; i < inputs.size(); ++i) {
            Dims const dims = inputs[i]->getDimensions();
            given[i].nbDims = dims.nbDims;
            for (int32_t k = 0; k < dims.nbDims; ++k) {
                given[i].d[k] = builder.constant(dims.d[k]);
            }
        }
        DimsExprs const out = plugin->getOutputDimensions(0, given.data(), static_cast<int32_t>(given.size()), builder);
        Dims dims{out.nbDims, {}};
        for (int32_t k = 0; k < out.nbDims; ++k) {
            dims.d[k] = out.d[k]->getConstantValue();
        }
        return dims;
    }
    IPluginV2& getPlugin() noexcept override { return *plugin; }
    IPluginV2DynamicExt* plugin = nullptr;
};

struct Builder final : IBuilder, stubs::VBuilder {
    explicit Builder(IPluginRegistry& registry) : registry(registry) { mImpl = this; }
    IPluginRegistry& getPluginRegistry() noexcept override { return registry; }
    IPluginRegistry& registry;
};

struct Network final : INetworkDefinition, stubs::VNetworkDefinition {
    explicit Network(Builder& builder) : builder(builder) { mImpl = this; }

    template <typename Made>
    Made* add(LayerType kind, std::vector<ITensor*> inputs, DataType type) {
        auto made = std::make_unique<Made>(kind, std::move(inputs));
        made->produce(type);
        Made* const layer = made.get();
        interfaces.push_back(layer);
        layers.push_back(std::move(made));
        return layer;
    }

    ITensor* addInput(char const* name, DataType type, Dims dims) noexcept override {
        // the batch
        std::replace(dims.d, dims.d + dims.nbDims, -1, 1);
        networkInputs.push_back(std::make_unique<Tensor>(nullptr, type, dims));
        networkInputs.back()->setName(name);
        return networkInputs.back().get();
    }
    void markOutput(ITensor& tensor) noexcept override { networkOutputs.push_back(&tensor); }
    IConvolutionLayer* addConvolutionNd(ITensor& x, int32_t maps, Dims kernel, Weights weights, Weights) noexcept override {
        auto* layer = add<Convolution>(LayerType::kCONVOLUTION, {&x}, x.getType());
        layer->maps = maps, layer->kernel = kernel, layer->weights = weights;
        return layer;
    }
    IActivationLayer* addActivation(ITensor& x, ActivationType) noexcept override { return add<Activation>(LayerType::kACTIVATION, {&x}, x.getType()); }
    IUnaryLayer* addUnary(ITensor& x, UnaryOperation) noexcept override { return add<Unary>(LayerType::kUNARY, {&x}, x.getType()); }
    ISoftMaxLayer* addSoftMax(ITensor& x) noexcept override { return add<SoftMax>(LayerType::kSOFTMAX, {&x}, x.getType()); }
    IIdentityLayer* addIdentity(ITensor& x) noexcept override { return add<Identity>(LayerType::kIDENTITY, {&x}, x.getType()); }
    ICastLayer* addCast(ITensor& x, DataType type) noexcept override { return add<CastTo>(LayerType::kCAST, {&x}, type); }
    IElementWiseLayer* addElementWise(ITensor& a, ITensor& b, ElementWiseOperation) noexcept override {
        return add<ElementWise>(LayerType::kELEMENTWISE, {&a, &b}, a.getType());
    }
    IMatrixMultiplyLayer* addMatrixMultiply(ITensor& a, MatrixOperation opA, ITensor& b, MatrixOperation opB) noexcept override {
        auto* layer = add<MatrixMultiply>(LayerType::kMATRIX_MULTIPLY, {&a, &b}, a.getType());
        layer->opA = opA, layer->opB = opB;
        return layer;
    }
    IShuffleLayer* addShuffle(ITensor& x) noexcept override { return add<Shuffle>(LayerType::kSHUFFLE, {&x}, x.getType()); }
    ISliceLayer* addSlice(ITensor& x, Dims, Dims size, Dims) noexcept override {
        auto* layer = add<Slice>(LayerType::kSLICE, {&x}, x.getType());
        layer->size = size;
        return layer;
    }
    IConcatenationLayer* addConcatenation(ITensor* const* given, int32_t count) noexcept override {
        return add<Concatenation>(LayerType::kCONCATENATION, {given, given + count}, given[0]->getType());
    }
    IReduceLayer* addReduce(ITensor& x, ReduceOperation, uint32_t axes, bool) noexcept override {
        auto* layer = add<Reduce>(LayerType::kREDUCE, {&x}, x.getType());
        layer->axes = axes;
        return layer;
    }
    IConstantLayer* addConstant(Dims dims, Weights weights) noexcept override {
        auto* layer = add<Constant>(LayerType::kCONSTANT, {}, weights.type);
        layer->dims = dims, layer->weights = weights;
        return layer;
    }
    INormalizationLayer* addNormalization(ITensor& x, ITensor& scale, ITensor& bias, uint32_t) noexcept override {
        return add<Normalization>(LayerType::kNORMALIZATION, {&x, &scale, &bias}, x.getType());
    }
    IQuantizeLayer* addQuantize(ITensor& x, ITensor& scale) noexcept override { return add<Quantize>(LayerType::kQUANTIZE, {&x, &scale}, DataType::kINT8); }
    IDequantizeLayer* addDequantize(ITensor& x, ITensor& scale) noexcept override {
        return add<Dequantize>(LayerType::kDEQUANTIZE, {&x, &scale}, DataType::kFLOAT);
    }
    IPluginV2Layer* addPluginV2(ITensor* const* given, int32_t count, IPluginV2& plugin) noexcept override {
        auto* layer = add<Plugin>(LayerType::kPLUGIN_V2, {given, given + count}, given[0]->getType());
        // the parser destroys its own
        layer->plugin = static_cast<IPluginV2DynamicExt*>(plugin.clone());
        return layer;
    }
    int32_t getNbLayers() const noexcept override { return static_cast<int32_t>(layers.size()); }
    ILayer* getLayer(int32_t index) const noexcept override { return interfaces[index]; }
    int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(networkInputs.size()); }
    ITensor* getInput(int32_t index) const noexcept override { return networkInputs[index].get(); }
    int32_t getNbOutputs() const noexcept override { return static_cast<int32_t>(networkOutputs.size()); }
    ITensor* getOutput(int32_t index) const noexcept override { return networkOutputs[index]; }
    bool hasImplicitBatchDimension() const noexcept override { return false; }
    bool setWeightsName(Weights, char const*) noexcept override { return true; }
    void setErrorRecorder(IErrorRecorder* given) noexcept override { recorder = given; }
    IErrorRecorder* getErrorRecorder() const noexcept override { return recorder; }
    IBuilder& getBuilder() const noexcept override { return builder; }

    Builder& builder;
    std::vector<std::unique_ptr<Layer>> layers;
    std::vector<ILayer*> interfaces;
    std::vector<std::unique_ptr<Tensor>> networkInputs;
    std::vector<ITensor*> networkOutputs;
    IErrorRecorder* recorder = nullptr;
};

class Log final : public ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kERROR) {
            complain(message);
        }
    }
};

// IParser, as far as it is called here: the order of NvOnnxParser.h of 8.6
class Parser {
public:
    virtual bool parse(void const*, size_t, char const*) = 0;
    virtual bool parseFromFile(char const* file, int verbosity) = 0;
};

char const* kindOf(LayerType kind) {
    switch (kind) {
    case LayerType::kCONVOLUTION: return "convolution";
    case LayerType::kMATRIX_MULTIPLY: return "matrix product";
    case LayerType::kNORMALIZATION: return "normalization";
    case LayerType::kPLUGIN_V2: return "plugin";
    case LayerType::kQUANTIZE: return "quantize";
    case LayerType::kSOFTMAX: return "softmax";
    default: return "other";
    }
}

std::string quoted(std::string text) {
    std::string out;
    for (char const c : text) {
        out += c == '"' || c == '\\' ? std::string("\\") + c : c == '\n' ? "\\n" : std::string(1, c);
    }
    return '"' + out + '"';
}

template <typename Function>
Function* symbol(void* library, char const* name) {
    void* const found = library == nullptr ? nullptr : dlsym(library, name);
    if (found == nullptr) {
        std::fprintf(stderr, "%s: %s\n", name, dlerror());
        std::exit(2);
    }
    return reinterpret_cast<Function*>(found);
}

} // namespace

int main(int argc, char** argv) {
    void* const nvinfer = dlopen("libnvinfer.so.8", RTLD_NOW | RTLD_GLOBAL);
    void* const library = dlopen("libnvonnxparser.so.8", RTLD_NOW | RTLD_GLOBAL);
    if (argc > 2 && dlopen(argv[2], RTLD_NOW | RTLD_LOCAL) == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    Builder builder(*symbol<IPluginRegistry*() noexcept>(nvinfer, "getPluginRegistry")());
    Network network(builder);
    Log log;
    int const version = symbol<int()>(library, "getNvOnnxParserVersion")();
    auto* const parser
        = static_cast<Parser*>(symbol<void*(void*, void*, int)>(library, "createNvOnnxParser_INTERNAL")(&network, &log, version));
    // the parser's own lines go to stdout, ours come last
    bool const parsed = parser->parseFromFile(argv[1], 0);
    std::map<std::string, int32_t> kinds;
    std::string normalizations, shapes;
    for (auto const& layer : network.layers) {
        ++kinds[kindOf(layer->kind)];
        if (layer->kind == LayerType::kNORMALIZATION) {
            normalizations += (normalizations.empty() ? "" : ", ") + quoted(layer->name + layer->metadata);
        }
    }
    for (ITensor* output : network.networkOutputs) {
        Dims const dims = output->getDimensions();
        for (int32_t i = 0; i < dims.nbDims; ++i) {
            shapes += (shapes.empty() ? "" : ", ") + std::to_string(dims.d[i]);
        }
    }
    std::cout << "\n{\"parsed\": " << (parsed ? "true" : "false") << ", \"version\": " << version << ", \"errors\": " << quoted(theErrors)
              << ", \"output\": [" << shapes << "], \"normalizations\": [" << normalizations << "], \"layers\": {";
    bool first = true;
    for (auto const& [kind, count] : kinds) {
        std::cout << (first ? "" : ", ") << '"' << kind << "\": " << count;
        first = false;
    }
    std::cout << "}}" << std::endl;
    // the parser owns weights that the network points to; nothing is taken down
    std::_Exit(0);
}
