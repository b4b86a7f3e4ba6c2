// GmfGroupMixAttention without TensorRT: checks, workspace and launches; both plugin interfaces are thin faces of it.
//
// The operator, its inputs and letters: gmf_edge/ops/group_mix_attention.py; the kernels: gmf_edge/kernels/group_mix_attention.py.
#pragma once

#include "driver.h"
#include "geometry.h"
#include "kernel_archive.h"

#include <memory>
#include <optional>
#include <string>

namespace gmf_edge {

// The node's attributes.
struct Attributes {
    int32_t height = 0;
    int32_t width = 0;
    float scale = 0.0F;
    float epsilon = 0.0F;
    int32_t segmentDim = 0;
    // 1 where inputs 1 and 2 are `vectors` [251, P] FP32 and `matrices` [6, P, P] instead of the 19 weights
    int32_t packed = 0;
};

class LaunchCore {
public:
    // Throws Problem: attributes that cannot be, or kernels of another width, scale or epsilon.
    LaunchCore(Attributes const& attributes, std::string kernelsBase64);

    Attributes const& attributes() const { return mAttributes; }
    std::string const& kernelsBase64() const { return mArchive->base64(); }
    ElementType type() const { return mArchive->images().front().type; }
    int64_t tokens() const { return int64_t{mAttributes.height} * mAttributes.width; }
    int64_t segmentDim() const { return mAttributes.segmentDim; }
    bool packed() const { return mAttributes.packed != 0; }
    int64_t inputs() const { return packed() ? kPackedInputs : kInputs; }

    // Throws Problem: qkv [batch, tokens, stacked] or the number of inputs does not fit the attributes.
    void checkInputs(int64_t inputs, int64_t tokens, int64_t stacked) const;

    // For any batch up to maxBatch, on any GPU; asks no device.
    size_t workspaceBytes(int64_t maxBatch) const;

    // Loads the kernels into the current context, once; copies of this object share them. Throws Problem.
    void load();
    bool loaded() const { return mLoaded != nullptr; }

    // Two launches on the stream (three where the weights are not packed), nothing else: no allocation, no synchronisation, so that
    // a CUDA graph can capture it. inputs: device pointers in the operator's order; output [batch, N, C]; workspace of workspaceBytes. Throws Problem.
    void enqueue(int64_t batch, void const* const* inputs, void* output, void* workspace, CUstream stream) const;

private:
    // Both kernels for one way to cut the work.
    struct Tiling {
        LoadedKernel aggregate;
        LoadedKernel attend;
        int64_t aggregateTokens; // slots of a tile
        int64_t attendTokens;
        int64_t parts;
    };
    struct Loaded {
        Device device;
        std::optional<LoadedKernel> pack; // where the weights are not packed
        Tiling small;
        Tiling large;
    };

    LoadedKernel loadOne(KernelImage const& image) const;
    Tiling loadTiling(TilingName name, uint32_t arch) const;
    size_t elementBytes() const { return type() == ElementType::kFLOAT ? 4 : 2; }
    // The least tile of `aggregate` in the archive.
    int64_t leastTokens() const;

    Attributes mAttributes;
    std::shared_ptr<KernelArchive const> mArchive;
    std::shared_ptr<Loaded const> mLoaded;
};

} // namespace gmf_edge
