#include "launch_core.h"

#include "problem.h"

#include <array>
#include <cmath>

namespace gmf_edge {
namespace {

constexpr char kRebuild[] = "build the bundle again with this version of gmf-edge";
// pointers, integers and the two of Triton's own that the kernels never read
constexpr uint32_t kPackArguments = 19 + 2 + 2;
constexpr uint32_t kAggregateArguments = 6 + 3 + 2;
constexpr uint32_t kAttendArguments = 5 + 3 + 2;

uint32_t argumentsOf(std::string const& kernel) {
    return kernel == "pack_weights" ? kPackArguments : kernel == "aggregate" ? kAggregateArguments : kAttendArguments;
}

bool near(float a, float b) { return std::abs(a - b) <= 1e-5F * std::abs(b); }

// The kernels read and write 16 bytes at a time; elsewhere that is an error which no later call of the process survives.
void requireAligned(void const* pointer, std::string const& what) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) {
        throw Problem(what + " is not aligned to 16 bytes", "give TensorRT aligned tensors, such as whole allocations");
    }
}

std::string hexOf(std::array<uint8_t, 32> const& digest) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (uint8_t const byte : digest) {
        text += {kDigits[byte >> 4], kDigits[byte & 15]};
    }
    return text;
}

} // namespace

LaunchCore::LaunchCore(Attributes const& attributes, std::string kernelsBase64)
    : mAttributes(attributes), mArchive(std::make_shared<KernelArchive const>(std::move(kernelsBase64))) {
    if (attributes.height < 1 || attributes.width < 1 || attributes.segmentDim < 2 || attributes.segmentDim % 2 != 0) {
        throw Problem("the attributes height, width and segment_dim of this node cannot be", kRebuild);
    }
    for (KernelImage const& image : mArchive->images()) {
        if (static_cast<int32_t>(image.segmentDim) != attributes.segmentDim) {
            throw Problem("the kernels are for segments of " + std::to_string(image.segmentDim) + " channels, this node has "
                    + std::to_string(attributes.segmentDim),
                kRebuild);
        }
        bool const tiled = image.kernel != "pack_weights";
        bool const cut = image.tiling <= TilingName::kLARGE && tiled == (image.tiling != TilingName::kNONE)
            && (!tiled || (image.tileTokens >= kBlockTokens && image.tileTokens % kBlockTokens == 0 && image.parts >= 1));
        if (image.arguments != argumentsOf(image.kernel) || !cut || image.type != type() || image.type > ElementType::kFLOAT) {
            throw Problem("kernel " + image.kernel + " was compiled for another version of this library", kRebuild);
        }
        if ((image.scale != 0.0F && !near(image.scale, attributes.scale)) || (image.epsilon != 0.0F && !near(image.epsilon, attributes.epsilon))) {
            throw Problem("kernel " + image.kernel + " was compiled for another scale or epsilon than this node's", kRebuild);
        }
    }
}

void LaunchCore::checkInputs(int64_t inputs, int64_t tokens, int64_t stacked) const {
    if (inputs != this->inputs()) {
        throw Problem("this node has " + std::to_string(inputs) + " inputs, expected " + std::to_string(this->inputs()), kRebuild);
    }
    if (tokens != this->tokens() || stacked != 3 * kSegments * segmentDim()) {
        throw Problem("qkv has " + std::to_string(tokens) + " tokens of " + std::to_string(stacked) + " channels, this node is for "
                + std::to_string(this->tokens()) + " of " + std::to_string(3 * kSegments * segmentDim()),
            "feed the image size and the width that the model was exported for");
    }
}

int64_t LaunchCore::leastTokens() const {
    int64_t least = 0;
    for (KernelImage const& image : mArchive->images()) {
        if (image.kernel == "aggregate" && (least == 0 || image.tileTokens < least)) {
            least = image.tileTokens;
        }
    }
    if (least == 0) {
        throw Problem("the kernels of this node have no aggregate", kRebuild);
    }
    return least;
}

size_t LaunchCore::workspaceBytes(int64_t maxBatch) const {
    return planWorkspace(maxBatch, mAttributes.height, mAttributes.width, segmentDim(), leastTokens(), elementBytes(), packed()).bytes;
}

LoadedKernel LaunchCore::loadOne(KernelImage const& image) const {
    return {image.cubin.data(), hexOf(image.sha256), image.entry, image.warps, image.sharedBytes};
}

LaunchCore::Tiling LaunchCore::loadTiling(TilingName name, uint32_t arch) const {
    KernelImage const& aggregate = mArchive->imageOf("aggregate", name, arch);
    KernelImage const& attend = mArchive->imageOf("attend", name, arch);
    return {loadOne(aggregate), loadOne(attend), aggregate.tileTokens, attend.tileTokens, attend.parts};
}

void LaunchCore::load() {
    if (loaded()) {
        return;
    }
    Device const device = currentDevice();
    // a node whose weights are packed already carries no kernel for that
    std::optional<LoadedKernel> pack;
    if (!packed()) {
        pack = loadOne(mArchive->imageOf("pack_weights", TilingName::kNONE, device.arch));
    }
    mLoaded = std::make_shared<Loaded const>(Loaded{
        device, std::move(pack), loadTiling(TilingName::kSMALL, device.arch), loadTiling(TilingName::kLARGE, device.arch)});
}

void LaunchCore::enqueue(int64_t batch, void const* const* inputs, void* output, void* workspace, CUstream stream) const {
    if (!loaded()) {
        throw Problem("the kernels were not loaded before the first launch", "report this with the TensorRT version");
    }
    int64_t const multiprocessors = mLoaded->device.multiprocessors;
    int32_t height = mAttributes.height;
    int32_t width = mAttributes.width;
    bool const large = fillsTheDevice(batch, height, width, mLoaded->large.aggregateTokens, multiprocessors);
    Tiling const& tiling = large ? mLoaded->large : mLoaded->small;
    Geometry const geometry = planGeometry(batch, height, width, tiling.aggregateTokens, multiprocessors);
    Workspace const regions = planWorkspace(batch, height, width, segmentDim(), leastTokens(), elementBytes(), packed());
    requireAligned(output, "the output");
    requireAligned(workspace, "the workspace");
    for (int64_t i = 0; i < this->inputs(); ++i) {
        requireAligned(inputs[i], "input " + std::to_string(i));
    }
    auto const region = [&](size_t offset) { return static_cast<void*>(static_cast<char*>(workspace) + offset); };
    void* vectors = packed() ? const_cast<void*>(inputs[1]) : region(regions.vectors);
    void* matrices = packed() ? const_cast<void*>(inputs[2]) : region(regions.matrices);
    void* scratch = region(regions.scratch);
    void* partials = region(regions.partials);
    void const* qkv = inputs[0];
    auto tilesPerSplit = static_cast<int32_t>(geometry.tilesPerSplit);
    auto splits = static_cast<int32_t>(geometry.splits);
    void* none = nullptr;

    // cuLaunchKernel wants the address of every argument
    if (!packed()) {
        std::array<void*, kPackArguments> pack{};
        for (int64_t i = 1; i < kInputs; ++i) {
            pack[i - 1] = const_cast<void const**>(&inputs[i]);
        }
        pack[19] = &vectors;
        pack[20] = &matrices;
        pack[21] = pack[22] = &none;
        mLoaded->pack->launch(kVectorRows + kMatrixCount, 1, 1, stream, pack.data());
    }

    std::array<void*, kAggregateArguments> aggregate = {
        &qkv, &vectors, &matrices, &height, &width, &tilesPerSplit, &scratch, &partials, &output, &none, &none};
    auto const images = static_cast<uint32_t>(batch);
    tiling.aggregate.launch(static_cast<uint32_t>(geometry.splits), kAggregateJobs, images, stream, aggregate.data());

    std::array<void*, kAttendArguments> attend = {
        &vectors, &matrices, &scratch, &partials, &height, &width, &splits, &output, &none, &none};
    auto const tiles = static_cast<uint32_t>(tilesOf(height, width, tiling.attendTokens));
    tiling.attend.launch(tiles, static_cast<uint32_t>(kMixedSegments * tiling.parts), images, stream, attend.data());
}

} // namespace gmf_edge
