// The kernels of one width, as gmf_edge/kernels/archive.py packs them.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gmf_edge {

// How a kernel cuts the work, see Tiling in gmf_edge/kernels/layout.py; pack_weights does not.
enum class TilingName : uint32_t { kNONE = 0, kSMALL = 1, kLARGE = 2 };

enum class ElementType : uint32_t { kHALF = 0, kBF16 = 1, kFLOAT = 2 };

struct KernelImage {
    std::string kernel; // pack_weights, aggregate or attend
    std::string entry;  // the function in the cubin
    uint32_t arch;      // 87 for sm_87
    uint32_t segmentDim;
    ElementType type;
    TilingName tiling;
    uint32_t tileTokens;
    uint32_t parts; // programs of attend that share the channels of a segment
    uint32_t warps;
    uint32_t sharedBytes;
    uint32_t arguments;
    float scale;   // compiled in; 0 where the kernel reads none
    float epsilon; // likewise
    std::string_view cubin;
    std::array<uint8_t, 32> sha256;
};

// Owns the bytes that its images point into; shared by all clones of a plugin.
class KernelArchive {
public:
    // Throws Problem: not an archive, cut short, or an image whose digest does not match.
    explicit KernelArchive(std::string base64);
    KernelArchive(KernelArchive const&) = delete;
    KernelArchive& operator=(KernelArchive const&) = delete;

    std::vector<KernelImage> const& images() const { return mImages; }
    std::string const& base64() const { return mBase64; }

    // The image for an architecture; throws Problem with the architectures that are there.
    KernelImage const& imageOf(std::string_view kernel, TilingName tiling, uint32_t arch) const;

private:
    std::string mBase64;
    std::string mBytes;
    std::vector<KernelImage> mImages;
};

} // namespace gmf_edge
