// The plugin library as TensorRT uses it, on a machine without a GPU: through its exported entry points and the mock driver.
//
//   plugin_host_test LIBRARY KERNELS   KERNELS: a file with the attribute `kernels`, S = 16, FP16, sm_80 to sm_90, T = 64;
//                                      `aggregate` for sm_90 wants 64 KB of shared memory
//   plugin_host_test --geometry        reads "batch H W S T multiprocessors" lines, prints splits, tiles per split, whether T fills the device, the sizes
#include "geometry.h"
#include "mock_cuda.h"

#include <NvInfer.h>
#include <NvInferVersion.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <vector>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"

namespace {

using namespace nvinfer1;

#define CHECK(condition)                                                                                                            \
    do {                                                                                                                            \
        if (!(condition)) {                                                                                                         \
            std::fprintf(stderr, "%s:%d: failed: %s\nlog: %s\n", __FILE__, __LINE__, #condition, theLog.text.c_str());              \
            std::exit(1);                                                                                                           \
        }                                                                                                                           \
    } while (false)

class Log final : public ILogger {
public:
    void log(Severity, char const* message) noexcept override { text += std::string(message) + "\n"; }
    bool holds(char const* part) const { return text.find(part) != std::string::npos; }
    std::string text;
};
Log theLog;

class Finder final : public ILoggerFinder {
public:
    ILogger* findLogger() noexcept override { return &theLog; }
};

#if NV_TENSORRT_MAJOR >= 10
using Extent = int64_t;
#else
using Extent = int32_t;
#endif

// Dimensions as expressions: constants suffice here.
class Constant final : public IDimensionExpr, public apiv::VDimensionExpr {
public:
    explicit Constant(Extent value) : mValue(value) { mImpl = this; }
    bool isConstant() const noexcept { return true; }
    Extent getConstantValue() const noexcept { return mValue; }
    bool isSizeTensor() const noexcept { return false; }

private:
    Extent mValue;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
public:
    Builder() { mImpl = this; }
    IDimensionExpr const* constant(Extent value) noexcept {
        mOwned.push_back(std::make_unique<Constant>(value));
        return mOwned.back().get();
    }
    IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) noexcept { return nullptr; }
    IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) noexcept { return nullptr; }

private:
    std::vector<std::unique_ptr<Constant>> mOwned;
};

constexpr int32_t kS = 16, kH = 14, kW = 10, kN = kH * kW, kC = 5 * kS;
// slots in a tile, and programs that share a segment in `attend`, of the fake kernels
struct Tiles {
    int64_t aggregate, attend, parts;
};
constexpr Tiles kSmall{16, 32, 2}, kLarge{64, 128, 1};

struct Node {
    int32_t height = kH, width = kW, segmentDim = kS, packed = 0;
    int32_t inputs() const { return packed != 0 ? 3 : 20; }
    float scale = 0.31622776F, epsilon = 1e-5F; // (80 / 8)^-0.5
    std::string kernels;
    std::vector<PluginField> fields;
    PluginFieldCollection collection{};

    PluginFieldCollection const* asFields() {
        fields = {{"height", &height, PluginFieldType::kINT32, 1}, {"width", &width, PluginFieldType::kINT32, 1},
            {"scale", &scale, PluginFieldType::kFLOAT32, 1}, {"epsilon", &epsilon, PluginFieldType::kFLOAT32, 1},
            {"segment_dim", &segmentDim, PluginFieldType::kINT32, 1}, {"packed", &packed, PluginFieldType::kINT32, 1},
            {"kernels", kernels.data(), PluginFieldType::kCHAR, static_cast<int32_t>(kernels.size())}};
        collection = {static_cast<int32_t>(fields.size()), fields.data()};
        return &collection;
    }
};

PluginTensorDesc tensor(int32_t batch, DataType type = DataType::kHALF, TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc desc{};
    desc.dims.nbDims = 3;
    desc.dims.d[0] = batch;
    desc.dims.d[1] = kN;
    desc.dims.d[2] = 3 * kC;
    desc.type = type;
    desc.format = format;
    return desc;
}

DynamicPluginTensorDesc dynamicTensor(int32_t maxBatch) {
    DynamicPluginTensorDesc desc{};
    desc.desc = tensor(-1);
    desc.min = desc.max = desc.desc.dims;
    desc.min.d[0] = 1;
    desc.max.d[0] = maxBatch;
    return desc;
}

// Device memory of the mock is host memory: ASan watches its ends.
struct Memory {
    explicit Memory(int32_t batch, size_t workspaceBytes)
        : output(static_cast<size_t>(batch) * kN * kC * 2), workspace(workspaceBytes), inputs(20) {
        for (size_t i = 0; i < inputs.size(); ++i) {
            inputs[i] = &marks[i];
        }
    }
    std::vector<char> output;
    std::vector<char> workspace;
    // weights lie at aligned addresses of their own, as TensorRT's do
    struct alignas(256) Mark {
        char byte;
    };
    Mark marks[20]{};
    std::vector<void const*> inputs;
};

// The launches of one enqueue, as the kernels' signatures want them; packed weights need no pack_weights.
void checkLaunches(mock::State& gpu, Memory& memory, int32_t batch, cudaStream_t stream, bool packed) {
    CHECK(gpu.launches.size() == (packed ? 2 : 3));
    // 14 rows of three blocks: three large tiles an image
    bool const large = batch * 6 * 3 >= 2 * gpu.multiprocessors;
    Tiles const& tiles = large ? kLarge : kSmall;
    auto const geometry = gmf_edge::planGeometry(batch, kH, kW, tiles.aggregate, gpu.multiprocessors);
    mock::Launch const& pack = gpu.launches.front();
    mock::Launch const& aggregate = gpu.launches[gpu.launches.size() - 2];
    mock::Launch const& attend = gpu.launches.back();
    for (mock::Launch const& launch : gpu.launches) {
        CHECK(launch.stream == stream);
        CHECK(launch.threads == 128);
        CHECK(launch.pointers.back() == nullptr);
        CHECK(launch.pointers[launch.pointers.size() - 2] == nullptr);
    }
    if (packed) {
        CHECK(aggregate.pointers[1] == memory.inputs[1] && aggregate.pointers[2] == memory.inputs[2]);
    } else {
        CHECK(pack.entry == "pack_weights" && pack.grid[0] == 257 && pack.grid[1] == 1 && pack.grid[2] == 1);
        for (size_t i = 0; i < 19; ++i) {
            CHECK(pack.pointers[i] == memory.inputs[i + 1]);
        }
        // both of the others read what pack wrote
        CHECK(aggregate.pointers[1] == pack.pointers[19] && aggregate.pointers[2] == pack.pointers[20]);
    }
    CHECK(aggregate.entry == (large ? "aggregate_large" : "aggregate_small"));
    CHECK(aggregate.grid[0] == static_cast<uint32_t>(geometry.splits) && aggregate.grid[1] == 9);
    CHECK(attend.entry == (large ? "attend_large" : "attend_small"));
    CHECK(attend.grid[0] == (large ? 2 : 6) && attend.grid[1] == 4 * tiles.parts);
    CHECK(aggregate.grid[2] == static_cast<uint32_t>(batch) && attend.grid[2] == static_cast<uint32_t>(batch));
    // q' and x_agg0 go to the output, where attend finds q'; no byte of it stays unwritten
    CHECK(aggregate.pointers[0] == memory.inputs[0] && attend.pointers[4] == memory.output.data());
    CHECK(aggregate.pointers[5] == memory.output.data());
    for (char const byte : memory.output) {
        CHECK(byte == 5 || byte == 6);
    }
    // attend reads what aggregate wrote
    CHECK(std::equal(attend.pointers.begin(), attend.pointers.begin() + 5, aggregate.pointers.begin() + 1));
    CHECK((aggregate.integers == std::vector<int32_t>{kH, kW, static_cast<int32_t>(geometry.tilesPerSplit)}));
    CHECK((attend.integers == std::vector<int32_t>{kH, kW, static_cast<int32_t>(geometry.splits)}));
    for (size_t i = packed ? 3 : 1; i < 5; ++i) {
        auto const offset = static_cast<char*>(aggregate.pointers[i]) - memory.workspace.data();
        CHECK(offset >= 0 && offset % 256 == 0 && static_cast<size_t>(offset) < memory.workspace.size());
    }
    gpu.launches.clear();
}

void testV2(IPluginCreator& creator, mock::State& gpu, Node node) {
    CHECK(std::string(creator.getPluginName()) == "GmfGroupMixAttention" && std::string(creator.getPluginVersion()) == "1");
    CHECK(std::string(creator.getPluginNamespace()).empty());
    CHECK(creator.getFieldNames()->nbFields == 9);
    auto* plugin = static_cast<IPluginV2DynamicExt*>(creator.createPlugin("node", node.asFields()));
    CHECK(plugin != nullptr);

    int32_t const inputs = node.inputs();
    std::vector<PluginTensorDesc> tensors(21, tensor(2));
    CHECK(plugin->supportsFormatCombination(0, tensors.data(), inputs, 1));
    CHECK(plugin->supportsFormatCombination(inputs, tensors.data(), inputs, 1));
    // FP16 all of it, but for the vectors of packed weights
    CHECK(plugin->supportsFormatCombination(1, tensors.data(), inputs, 1) == (node.packed == 0));
    tensors[1] = tensors[2] = tensor(2, DataType::kFLOAT);
    tensors[3] = tensor(2, DataType::kHALF, TensorFormat::kCHW4);
    CHECK(plugin->supportsFormatCombination(1, tensors.data(), inputs, 1) == (node.packed != 0));
    CHECK(!plugin->supportsFormatCombination(2, tensors.data(), inputs, 1));
    CHECK(!plugin->supportsFormatCombination(3, tensors.data(), inputs, 1));

    Builder builder;
    DimsExprs qkv{};
    qkv.nbDims = 3;
    for (int i = 0; i < 3; ++i) {
        qkv.d[i] = builder.constant(i == 0 ? 2 : i == 1 ? kN : 3 * kC);
    }
    DimsExprs const out = plugin->getOutputDimensions(0, &qkv, 20, builder);
    CHECK(out.nbDims == 3 && out.d[0] == qkv.d[0] && out.d[1] == qkv.d[1] && out.d[2]->getConstantValue() == kC);

    std::vector<DynamicPluginTensorDesc> range(21, dynamicTensor(8));
    plugin->configurePlugin(range.data(), inputs, range.data() + inputs, 1);
    CHECK(theLog.text.empty());

    tensors.assign(21, tensor(8));
    // an engine is built on a small GPU and runs on a large one: the size is asked for once, and without a context
    int const multiprocessors = gpu.multiprocessors;
    gpu.multiprocessors = 8;
    gpu.context = false;
    size_t const bytes = plugin->getWorkspaceSize(tensors.data(), 20, tensors.data() + 20, 1);
    CHECK(bytes > 0 && theLog.text.empty());
    gpu.context = true;
    // small tiles up to batch 4, large ones from 5 on
    gpu.multiprocessors = 40;
    auto* const stream = reinterpret_cast<cudaStream_t>(&node);
    {
        // before initialize there is nothing to launch, and enqueue must not load
        Memory memory(2, bytes);
        void* outputs[] = {memory.output.data()};
        tensors.assign(21, tensor(2));
        CHECK(plugin->enqueue(tensors.data(), tensors.data() + 20, memory.inputs.data(), outputs, memory.workspace.data(), stream) != 0);
        CHECK(gpu.modulesLoaded == 0 && gpu.launches.empty() && theLog.holds("not loaded before"));
        theLog.text.clear();
    }
    CHECK(plugin->initialize() == 0);
    int const modules = node.packed != 0 ? 4 : 5;
    CHECK(gpu.modulesLoaded == modules);
    for (int32_t const batch : {1, 2, 3, 5, 8}) {
        Memory memory(batch, bytes);
        void* outputs[] = {memory.output.data()};
        tensors.assign(21, tensor(batch));
        CHECK(plugin->enqueue(tensors.data(), tensors.data() + 20, memory.inputs.data(), outputs, memory.workspace.data(), stream) == 0);
        checkLaunches(gpu, memory, batch, stream, node.packed != 0);
    }

    // a clone shares the kernels; a plugin read back from an engine finds the same modules by their digests
    IPluginV2DynamicExt* copy = plugin->clone();
    std::vector<char> serialized(plugin->getSerializationSize());
    plugin->serialize(serialized.data());
    auto* again = static_cast<IPluginV2DynamicExt*>(creator.deserializePlugin("node", serialized.data(), serialized.size()));
    CHECK(again != nullptr && again->initialize() == 0);
    CHECK(gpu.modulesLoaded == modules);
    plugin->destroy();
    for (IPluginV2DynamicExt* other : {copy, again}) {
        Memory memory(3, bytes);
        void* outputs[] = {memory.output.data()};
        tensors.assign(21, tensor(3));
        CHECK(other->enqueue(tensors.data(), tensors.data() + 20, memory.inputs.data(), outputs, memory.workspace.data(), stream) == 0);
        checkLaunches(gpu, memory, 3, stream, node.packed != 0);
        CHECK(gpu.modulesAlive == modules);
        other->destroy();
    }
    CHECK(gpu.modulesAlive == 0);
    gpu.multiprocessors = multiprocessors;
    serialized.resize(serialized.size() - 1);
    CHECK(creator.deserializePlugin("node", serialized.data(), serialized.size()) == nullptr);
    CHECK(theLog.holds("gmf-edge deploy"));
    theLog.text.clear();
    gpu.modulesLoaded = 0;
}

#if NV_TENSORRT_MAJOR >= 10
void testV3(IPluginCreatorV3One& creator, mock::State& gpu, Node node) {
    CHECK(std::string(creator.getPluginName()) == "GmfGroupMixAttention" && std::string(creator.getPluginVersion()) == "1");
    std::unique_ptr<IPluginV3> plugin(creator.createPlugin("node", node.asFields(), TensorRTPhase::kBUILD));
    CHECK(plugin != nullptr);
    auto* core = static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    auto* build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    CHECK(core != nullptr && build != nullptr && std::string(core->getPluginNamespace()).empty());
    CHECK(build->getNbOutputs() == 1);

    std::vector<DynamicPluginTensorDesc> range(21, dynamicTensor(8));
    int32_t const count = node.inputs();
    CHECK(build->supportsFormatCombination(count, range.data(), count, 1));
    CHECK(build->supportsFormatCombination(1, range.data(), count, 1) == (node.packed == 0));
    range[2].desc.type = DataType::kFLOAT;
    CHECK(!build->supportsFormatCombination(2, range.data(), count, 1));
    range[2].desc.type = DataType::kHALF;
    CHECK(build->configurePlugin(range.data(), count, range.data() + count, 1) == 0);
    CHECK(build->configurePlugin(range.data(), 19, range.data() + 19, 1) != 0 && theLog.holds("19 inputs"));
    theLog.text.clear();
    DataType const inputTypes[] = {DataType::kHALF};
    DataType outputType{};
    CHECK(build->getOutputDataTypes(&outputType, 1, inputTypes, 20) == 0 && outputType == DataType::kHALF);
    Builder builder;
    DimsExprs qkv{};
    qkv.nbDims = 3;
    for (int i = 0; i < 3; ++i) {
        qkv.d[i] = builder.constant(i == 0 ? 2 : i == 1 ? kN : 3 * kC);
    }
    DimsExprs out{};
    CHECK(build->getOutputShapes(&qkv, 20, nullptr, 0, &out, 1, builder) == 0);
    CHECK(out.nbDims == 3 && out.d[0] == qkv.d[0] && out.d[1] == qkv.d[1] && out.d[2]->getConstantValue() == kC);
    int const multiprocessors = gpu.multiprocessors;
    gpu.multiprocessors = 8;
    gpu.context = false;
    size_t const bytes = build->getWorkspaceSize(range.data(), 20, range.data() + 20, 1);
    CHECK(bytes > 0 && theLog.text.empty());
    gpu.context = true;
    gpu.multiprocessors = 132;

    auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginFieldCollection const* kept = runtime->getFieldsToSerialize();
    CHECK(kept != nullptr && kept->nbFields == 7);
    std::unique_ptr<IPluginV3> read(creator.createPlugin("node", kept, TensorRTPhase::kRUNTIME));
    CHECK(read != nullptr);
    plugin.reset();
    auto* loaded = static_cast<IPluginV3OneRuntime*>(read->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    // small tiles at every batch here in the first context, large ones from 5 on in the second
    std::unique_ptr<IPluginV3> first(loaded->attachToContext(nullptr));
    gpu.multiprocessors = 40;
    std::unique_ptr<IPluginV3> second(loaded->attachToContext(nullptr));
    CHECK(first != nullptr && second != nullptr && gpu.modulesLoaded == (node.packed != 0 ? 4 : 5));
    read.reset();
    auto* const stream = reinterpret_cast<cudaStream_t>(&node);
    for (IPluginV3* context : {first.get(), second.get()}) {
        gpu.multiprocessors = context == first.get() ? 132 : 40;
        auto* running = static_cast<IPluginV3OneRuntime*>(context->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
        for (int32_t const batch : {1, 8, 5}) {
            Memory memory(batch, bytes);
            void* outputs[] = {memory.output.data()};
            std::vector<PluginTensorDesc> tensors(21, tensor(batch));
            CHECK(running->onShapeChange(tensors.data(), count, tensors.data() + count, 1) == 0);
            CHECK(running->enqueue(tensors.data(), tensors.data() + 20, memory.inputs.data(), outputs, memory.workspace.data(), stream) == 0);
            checkLaunches(gpu, memory, batch, stream, node.packed != 0);
        }
    }
    {
        std::vector<PluginTensorDesc> tensors(21, tensor(1));
        tensors[0].dims.d[1] = kN + 1;
        auto* running = static_cast<IPluginV3OneRuntime*>(first->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
        CHECK(running->onShapeChange(tensors.data(), count, tensors.data() + count, 1) != 0 && theLog.holds("141 tokens"));
        theLog.text.clear();
    }
    first.reset();
    CHECK(gpu.modulesAlive == (node.packed != 0 ? 4 : 5));
    second.reset();
    CHECK(gpu.modulesAlive == 0);
    gpu.multiprocessors = multiprocessors;
    gpu.modulesLoaded = 0;
}
#endif

// Everything that must be refused says what is wrong and what to do.
void testRefusals(IPluginCreator& creator, mock::State& gpu, Node const& good) {
    auto const refused = [&](Node node, char const* problem, char const* remedy) {
        theLog.text.clear();
        CHECK(creator.createPlugin("node", node.asFields()) == nullptr);
        CHECK(theLog.holds(problem) && theLog.holds(remedy));
    };
    Node node = good;
    node.kernels.clear();
    refused(node, "carries no kernels", "plugin.onnx");
    node = good;
    node.kernels[5] = '*';
    refused(node, "not base64", "gmf-edge kernels compile");
    node = good;
    node.kernels[0] = node.kernels[0] == 'A' ? 'B' : 'A';
    refused(node, "not a kernel archive", "gmf-edge kernels compile");
    node = good;
    node.kernels.resize(node.kernels.size() / 2);
    refused(node, "cut short", "gmf-edge kernels compile");
    node = good;
    // one bit of the last kernel
    char& late = node.kernels[node.kernels.size() - 8];
    late = late == 'A' ? 'B' : 'A';
    refused(node, "does not match its digest", "gmf-edge kernels compile");
    node = good;
    node.segmentDim = 32;
    refused(node, "segments of 16 channels, this node has 32", "build the bundle again");
    node = good;
    node.epsilon = 1e-6F;
    refused(node, "scale or epsilon", "build the bundle again");
    node = good;
    node.height = 0;
    refused(node, "cannot be", "build the bundle again");

    auto const notLoaded = [&](char const* problem, char const* remedy) {
        theLog.text.clear();
        Node fresh = good;
        auto* plugin = creator.createPlugin("node", fresh.asFields());
        CHECK(plugin != nullptr && plugin->initialize() != 0);
        CHECK(theLog.holds(problem) && theLog.holds(remedy));
        plugin->destroy();
    };
    // no guarantee: older, Tegra, another major version, and what Triton compiles for one architecture alone
    for (int const arch : {75, 88, 100, 103, 120}) {
        gpu.arch = arch;
        std::string const name = "sm_" + std::to_string(arch);
        notLoaded(("for sm_80, sm_86, sm_87, sm_90, this GPU is " + name).c_str(), ("--arch " + name).c_str());
    }
    // its own, or the nearest older one where CUDA guarantees that it runs
    for (auto const& [arch, image] : {std::pair{80, "sm_80"}, {86, "sm_86"}, {87, "sm_87"}, {89, "sm_86"}, {90, "sm_90"}}) {
        gpu.arch = arch;
        Node fresh = good;
        auto* plugin = creator.createPlugin("node", fresh.asFields());
        CHECK(plugin != nullptr && plugin->initialize() == 0);
        CHECK(gpu.lastImage == std::string("\x7f" "ELF attend_large ") + image);
        plugin->destroy();
    }
    gpu.arch = 87;
    gpu.context = false;
    notLoaded("no CUDA context", "cudaSetDevice");
    gpu.context = true;
    gpu.refuse = true;
    notLoaded("device kernel image is invalid", "older ptxas");
    gpu.refuse = false;

    // a launch that fails ends the enqueue with a line in the log
    theLog.text.clear();
    Node fresh = good;
    auto* plugin = static_cast<IPluginV2DynamicExt*>(creator.createPlugin("node", fresh.asFields()));
    CHECK(plugin->initialize() == 0);
    std::vector<PluginTensorDesc> tensors(21, tensor(1));
    Memory memory(1, plugin->getWorkspaceSize(tensors.data(), 20, tensors.data() + 20, 1));
    void* outputs[] = {memory.output.data()};
    gpu.failLaunch = true;
    CHECK(plugin->enqueue(tensors.data(), tensors.data() + 20, memory.inputs.data(), outputs, memory.workspace.data(), nullptr) != 0);
    CHECK(theLog.holds("did not start") && theLog.holds("--no-plugin"));
    gpu.failLaunch = false;
    // 16 bytes at a time: what is not aligned never reaches the GPU
    theLog.text.clear();
    size_t const launched = gpu.launches.size();
    memory.inputs[0] = memory.output.data() + 2;
    CHECK(plugin->enqueue(tensors.data(), tensors.data() + 20, memory.inputs.data(), outputs, memory.workspace.data(), nullptr) != 0);
    CHECK(theLog.holds("input 0 is not aligned") && gpu.launches.size() == launched);
    plugin->destroy();

    // a context that was reset has another identity at the same address: nothing loaded before is used in it
    plugin = static_cast<IPluginV2DynamicExt*>(creator.createPlugin("node", fresh.asFields()));
    CHECK(plugin->initialize() == 0);
    int const loaded = gpu.modulesLoaded;
    gpu.contextId = 2;
    auto* later = static_cast<IPluginV2DynamicExt*>(creator.createPlugin("node", fresh.asFields()));
    CHECK(later->initialize() == 0 && gpu.modulesLoaded == loaded + 5);
    later->destroy();
    plugin->destroy();

    // more than 48 KB of shared memory is asked for
    gpu.arch = 90;
    gpu.largestSharedBytes = 0;
    plugin = static_cast<IPluginV2DynamicExt*>(creator.createPlugin("node", fresh.asFields()));
    CHECK(plugin->initialize() == 0 && gpu.largestSharedBytes == 65536);
    plugin->destroy();
    CHECK(gpu.modulesAlive == 0);
}

int printGeometry() {
    int64_t batch = 0, height = 0, width = 0, segment = 0, tile = 0, processors = 0;
    while (std::cin >> batch >> height >> width >> segment >> tile >> processors) {
        auto const g = gmf_edge::planGeometry(batch, height, width, tile, processors);
        auto const w = gmf_edge::planWorkspace(batch, height, width, segment, tile, 2, false);
        std::cout << g.splits << ' ' << g.tilesPerSplit << ' ' << gmf_edge::fillsTheDevice(batch, height, width, tile, processors) << ' '
                  << gmf_edge::paddedDim(segment) << ' ' << gmf_edge::Geometry::partialFloats(segment) << ' ' << gmf_edge::kVectorRows << ' '
                  << gmf_edge::kMatrixCount << ' ' << gmf_edge::kAggregateJobs << ' ' << w.bytes - w.partials << '\n';
    }
    return 0;
}

template <typename Function>
Function* symbol(void* library, char const* name) {
    void* found = dlsym(library, name);
    CHECK(found != nullptr);
    return reinterpret_cast<Function*>(found);
}

} // namespace

int main(int argc, char** argv) {
    if (argc == 2 && std::string(argv[1]) == "--geometry") {
        return printGeometry();
    }
    if (argc != 3) {
        std::fprintf(stderr, "usage: %s LIBRARY KERNELS | --geometry\n", argv[0]);
        return 2;
    }
    void* driver = dlopen("libcuda.so.1", RTLD_NOW);
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (driver == nullptr || library == nullptr) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    mock::State& gpu = *symbol<mock::State*()>(driver, "mockState")();
    std::ifstream file(argv[2]);
    Node node;
    node.kernels.assign(std::istreambuf_iterator<char>(file), {});

    Finder finder;
    symbol<void(ILoggerFinder*)>(library, "setLoggerFinder")(&finder);
    int32_t count = 0;
    IPluginCreator* const* creators = symbol<IPluginCreator* const*(int32_t&)>(library, "getPluginCreators")(count);
    CHECK(count == 1);
    Node packed = node;
    packed.packed = 1;
    testV2(*creators[0], gpu, node);
    testV2(*creators[0], gpu, packed);
    testRefusals(*creators[0], gpu, node);
#if NV_TENSORRT_MAJOR >= 10
    theLog.text.clear();
    gpu.arch = 87;
    gpu.modulesLoaded = 0;
    gpu.launches.clear();
    IPluginCreatorInterface* const* newer = symbol<IPluginCreatorInterface* const*(int32_t&)>(library, "getCreators")(count);
    CHECK(count == 1);
    testV3(*static_cast<IPluginCreatorV3One*>(newer[0]), gpu, node);
    testV3(*static_cast<IPluginCreatorV3One*>(newer[0]), gpu, packed);
#endif
    std::printf("TensorRT %d.%d: passed\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
    return 0;
}
