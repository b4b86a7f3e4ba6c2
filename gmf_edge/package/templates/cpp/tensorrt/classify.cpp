// classify MODEL IMAGES LOGITS [--batch N] [--labels FILE] [--expect FILE] [--plugin LIBRARY]
//
// Runs model.plan with TensorRT 8.6 to 11. IMAGES: preprocessed float32 [n, 3, H, W], raw. LOGITS: written, float32 [n, classes], raw.
#include "tensor_files.h"

#include <NvInfer.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <iostream>
#include <memory>

namespace {

constexpr char const* kInput = "images";
constexpr char const* kOutput = "logits";

class Logger final : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << "TensorRT: " << message << '\n';
    }
};

void check(cudaError_t status, char const* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct CudaFree {
    void operator()(void* pointer) const { cudaFree(pointer); }
};
using DeviceMemory = std::unique_ptr<void, CudaFree>;

DeviceMemory deviceMemory(std::size_t bytes) {
    void* pointer = nullptr;
    check(cudaMalloc(&pointer, bytes), "cudaMalloc");
    return DeviceMemory(pointer);
}

struct Stream {
    cudaStream_t handle = nullptr;
    Stream() { check(cudaStreamCreate(&handle), "cudaStreamCreate"); }
    ~Stream() { cudaStreamDestroy(handle); }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;
};

std::vector<char> readBytes(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + path);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::size_t floatsOf(nvinfer1::Dims const& dims, int first) {
    std::size_t product = 1;
    for (int i = first; i < dims.nbDims; ++i) product *= static_cast<std::size_t>(dims.d[i]);
    return product;
}

void requireFloat(nvinfer1::ICudaEngine const& engine, char const* name, int rank) {
    if (engine.getTensorShape(name).nbDims != rank || engine.getTensorDataType(name) != nvinfer1::DataType::kFLOAT)
        throw std::runtime_error(std::string("the engine has no float32 tensor ") + name + " of that rank");
}

int classify(gmf::Arguments const& arguments) {
    auto const images = gmf::readFloats(arguments.files[1]);
    auto const plan = readBytes(arguments.files[0]);
    // before the engine: the library registers its plugin when it is loaded
    std::string const plugin = arguments.get("--plugin", "");
    if (!plugin.empty() && !dlopen(plugin.c_str(), RTLD_NOW | RTLD_LOCAL)) throw std::runtime_error(dlerror());

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    if (!runtime) throw std::runtime_error("TensorRT cannot be started");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) throw std::runtime_error(arguments.files[0] + " was not built for this GPU and TensorRT; run 'gmf-edge deploy' here");
    requireFloat(*engine, kInput, 4);
    requireFloat(*engine, kOutput, 2);
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    if (!context) throw std::runtime_error("no execution context: is there enough GPU memory?");

    auto shape = engine->getTensorShape(kInput);  // [-1, 3, H, W]
    std::size_t const imageFloats = floatsOf(shape, 1);
    std::size_t const classes = floatsOf(engine->getTensorShape(kOutput), 1);
    if (images.empty() || images.size() % imageFloats) throw std::runtime_error(arguments.files[1] + " does not hold images of that size");
    std::size_t const count = images.size() / imageFloats, most = std::min(arguments.batch(), count);
    auto const limit = engine->getProfileShape(kInput, 0, nvinfer1::OptProfileSelector::kMAX).d[0];
    if (most > static_cast<std::size_t>(limit)) throw std::runtime_error("--batch is above the engine's " + std::to_string(limit));

    // what still uses them is destroyed before them
    auto const input = deviceMemory(most * imageFloats * sizeof(float)), output = deviceMemory(most * classes * sizeof(float));
    Stream const stream;
    std::vector<float> logits(count * classes);
    if (!context->setTensorAddress(kInput, input.get()) || !context->setTensorAddress(kOutput, output.get()))
        throw std::runtime_error("TensorRT does not take the buffers");
    for (std::size_t first = 0; first < count; first += most) {
        std::size_t const batch = std::min(most, count - first);
        shape.d[0] = static_cast<decltype(shape.d[0] + 0)>(batch);
        if (!context->setInputShape(kInput, shape)) throw std::runtime_error("TensorRT does not take a batch of " + std::to_string(batch));
        check(cudaMemcpyAsync(input.get(), &images[first * imageFloats], batch * imageFloats * sizeof(float), cudaMemcpyHostToDevice,
                              stream.handle),
              "copying images");
        if (!context->enqueueV3(stream.handle)) throw std::runtime_error("TensorRT cannot run a batch of " + std::to_string(batch));
        check(cudaMemcpyAsync(&logits[first * classes], output.get(), batch * classes * sizeof(float), cudaMemcpyDeviceToHost, stream.handle),
              "copying logits");
        check(cudaStreamSynchronize(stream.handle), "the inference");
    }
    gmf::writeFloats(arguments.files[2], logits);
    return gmf::report(logits, classes, arguments);
}

}  // namespace

int main(int count, char** values) {
    try {
        return classify(gmf::Arguments(count, values, {"--batch", "--labels", "--expect", "--plugin"}));
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
