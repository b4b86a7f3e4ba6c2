// Geometry of the GmfGroupMixAttention kernels; the same numbers as gmf_edge/kernels/layout.py (a test compares them).
//
// Letters: B batch, N tokens, C channels, S = C / 5 channels of a segment, d = S / 2 of a head, P = S padded to a power of two.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace gmf_edge {

constexpr int64_t kSegments = 5;
constexpr int64_t kMixedSegments = 4;
constexpr int64_t kMinPaddedDim = 16;
constexpr int64_t kVectorRows = 251;
constexpr int64_t kMatrixCount = 6;
constexpr int64_t kMaxSplits = 32;
// qkv and 19 weights, or qkv, vectors and matrices where the weights were packed when the model was made
constexpr int64_t kInputs = 20;
constexpr int64_t kPackedInputs = 3;

constexpr int64_t divideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t paddedDim(int64_t segmentDim) {
    int64_t padded = kMinPaddedDim;
    while (padded < segmentDim) {
        padded *= 2;
    }
    return padded;
}

// Slots for neighbours of a row of the map that one thread computes.
constexpr int64_t kBlockTokens = 4;
// Programs of `aggregate` for one split, and how many of them are there for every split: see layout.py.
constexpr int64_t kAggregateJobs = 9;
constexpr int64_t kBusyJobs = 6;

// How many tiles of tileTokens slots cover a map.
constexpr int64_t tilesOf(int64_t height, int64_t width, int64_t tileTokens) {
    return divideUp(height * divideUp(width, kBlockTokens), tileTokens / kBlockTokens);
}

// One launch of the kernels; see Geometry in layout.py.
struct Geometry {
    int64_t splits;
    int64_t tilesPerSplit;

    // FP32 numbers of one (image, split, segment): m [S], l [S], context [S, d]
    static constexpr int64_t partialFloats(int64_t segmentDim) { return segmentDim * (2 + segmentDim / 2); }
};

// tileTokens: of `aggregate`.
inline Geometry planGeometry(int64_t batch, int64_t height, int64_t width, int64_t tileTokens, int64_t multiprocessors) {
    int64_t const tiles = tilesOf(height, width, tileTokens);
    int64_t const wanted = divideUp(4 * multiprocessors, kBusyJobs * batch);
    int64_t const limit = std::max<int64_t>(1, std::min({wanted, tiles, kMaxSplits}));
    int64_t const tilesPerSplit = divideUp(tiles, limit);
    return {divideUp(tiles, tilesPerSplit), tilesPerSplit};
}

// Whether the large tiles alone, of largeTokens slots in `aggregate`, give every multiprocessor enough programs; else the small ones.
inline bool fillsTheDevice(int64_t batch, int64_t height, int64_t width, int64_t largeTokens, int64_t multiprocessors) {
    return batch * kBusyJobs * tilesOf(height, width, largeTokens) >= 2 * multiprocessors;
}

// Workspace of one node: regions aligned as TensorRT aligns the workspace itself; packed weights need none of the first two.
struct Workspace {
    static constexpr size_t kAlignment = 256;
    size_t vectors;
    size_t matrices;
    size_t scratch;
    size_t partials;
    size_t bytes;
};

// For every batch up to maxBatch on every GPU: TensorRT asks for the size when the engine is built and keeps it in the engine, which may run
// on a GPU with more multiprocessors (hardware compatibility, MIG, another module of one architecture). So the partials are bounded by what
// planGeometry gives on any of them, for either tiling: leastTokens is the smaller of their tiles in `aggregate`.
inline Workspace planWorkspace(int64_t maxBatch, int64_t height, int64_t width, int64_t segmentDim, int64_t leastTokens,
    size_t elementBytes, bool packed) {
    auto const align = [](size_t bytes) { return (bytes + Workspace::kAlignment - 1) / Workspace::kAlignment * Workspace::kAlignment; };
    size_t const padded = static_cast<size_t>(paddedDim(segmentDim));
    int64_t const tiles = tilesOf(height, width, leastTokens);
    int64_t const partials = maxBatch * std::min(tiles, kMaxSplits);
    Workspace workspace{};
    workspace.vectors = 0;
    workspace.matrices = packed ? 0 : align(kVectorRows * padded * sizeof(float));
    workspace.scratch = packed ? 0 : workspace.matrices + align(kMatrixCount * padded * padded * elementBytes);
    workspace.partials = workspace.scratch + align(static_cast<size_t>(maxBatch * height * width * kMixedSegments * segmentDim) * elementBytes);
    workspace.bytes = workspace.partials
        + align(static_cast<size_t>(partials * kMixedSegments * Geometry::partialFloats(segmentDim)) * sizeof(float));
    return workspace;
}

} // namespace gmf_edge
