// classify MODEL IMAGES LOGITS [--batch N] [--labels FILE] [--expect FILE] [--threads N]
//
// Runs model.onnx with ONNX Runtime on the CPU. IMAGES: preprocessed float32 [n, 3, H, W], raw. LOGITS: written, float32 [n, classes], raw.
#include "tensor_files.h"

#include <onnxruntime_cxx_api.h>

#include <array>
#include <iostream>

namespace {

constexpr char const* kInput = "images";
constexpr char const* kOutput = "logits";

// H and W are fixed in the graph, the batch is free
std::array<std::int64_t, 4> imageShape(Ort::Session const& session) {
    // the shape is that of the type's, which must live as long
    auto const type = session.GetInputTypeInfo(0);
    auto const shape = type.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[1] != 3 || shape[2] < 1 || shape[3] < 1) throw std::runtime_error("the model does not take [B, 3, H, W]");
    return {0, shape[1], shape[2], shape[3]};
}

int classify(gmf::Arguments const& arguments) {
    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "classify");
    Ort::SessionOptions options;
    // 0: a thread a core
    options.SetIntraOpNumThreads(std::stoi(arguments.get("--threads", "0")));
    Ort::Session session(env, arguments.files[0].c_str(), options);

    auto shape = imageShape(session);
    auto const imageFloats = static_cast<std::size_t>(shape[1] * shape[2] * shape[3]);
    auto images = gmf::readFloats(arguments.files[1]);
    if (images.empty() || images.size() % imageFloats) throw std::runtime_error(arguments.files[1] + " does not hold images of that size");

    std::vector<float> logits;
    std::size_t const count = images.size() / imageFloats;
    std::size_t classes = 0;
    auto const memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
    for (std::size_t first = 0; first < count; first += arguments.batch()) {
        std::size_t const batch = std::min(arguments.batch(), count - first);
        shape[0] = static_cast<std::int64_t>(batch);
        // the tensor is a view of the images: nothing is copied
        auto const input = Ort::Value::CreateTensor<float>(memory, &images[first * imageFloats], batch * imageFloats, shape.data(), shape.size());
        auto const outputs = session.Run(Ort::RunOptions{nullptr}, &kInput, &input, 1, &kOutput, 1);
        float const* values = outputs[0].GetTensorData<float>();
        classes = outputs[0].GetTensorTypeAndShapeInfo().GetElementCount() / batch;
        logits.insert(logits.end(), values, values + batch * classes);
    }
    gmf::writeFloats(arguments.files[2], logits);
    return gmf::report(logits, classes, arguments);
}

}  // namespace

int main(int count, char** values) {
    try {
        return classify(gmf::Arguments(count, values, {"--batch", "--labels", "--expect", "--threads"}));
    } catch (std::exception const& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
