#include "kernel_archive.h"

#include "problem.h"
#include "sha256.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace gmf_edge {
namespace {

constexpr char kCompileAgain[] = "compile the kernels again with 'gmf-edge kernels compile' and build a new engine";

// Little endian, without padding: the hosts of TensorRT are.
struct Header {
    char magic[8];
    uint32_t count;
    uint32_t zero;
};
struct Record {
    char kernel[16];
    char entry[64];
    uint32_t arch, segmentDim, type, tiling, tileTokens, parts, warps, sharedBytes, arguments, zero;
    float scale, epsilon;
    uint64_t offset, size;
    uint8_t sha256[32];
};
static_assert(sizeof(Header) == 16 && sizeof(Record) == 176, "archive.py packs without padding");

std::string decodeBase64(std::string const& text) {
    std::string bytes;
    bytes.reserve(text.size() / 4 * 3);
    uint32_t bits = 0;
    int count = 0;
    for (char const c : text) {
        uint32_t value = 0;
        if (c >= 'A' && c <= 'Z') {
            value = static_cast<uint32_t>(c - 'A');
        } else if (c >= 'a' && c <= 'z') {
            value = static_cast<uint32_t>(c - 'a' + 26);
        } else if (c >= '0' && c <= '9') {
            value = static_cast<uint32_t>(c - '0' + 52);
        } else if (c == '+') {
            value = 62;
        } else if (c == '/') {
            value = 63;
        } else if (c == '=') {
            break;
        } else {
            throw Problem("the attribute 'kernels' is not base64", kCompileAgain);
        }
        bits = bits << 6 | value;
        if (++count == 4) {
            bytes += {static_cast<char>(bits >> 16), static_cast<char>(bits >> 8), static_cast<char>(bits)};
            bits = 0;
            count = 0;
        }
    }
    if (count >= 2) {
        bytes += static_cast<char>(bits >> (count == 2 ? 4 : 10));
    }
    if (count == 3) {
        bytes += static_cast<char>(bits >> 2);
    }
    return bytes;
}

// Whether code for one architecture runs on a newer one: CUDA guarantees it within a major version, but not between desktop and Tegra
// parts such as 8.7 (CUDA C++ Programming Guide, Binary Compatibility), nor for code that Triton makes for sm_90 and later (sm_90a and
// the like). That leaves Ampere and Ada.
bool runsOn(uint32_t image, uint32_t device) {
    return (image == 80 || image == 86) && (device == 86 || device == 89) && image <= device;
}

std::string textOf(char const* field, size_t size) { return std::string(field, std::find(field, field + size, '\0')); }

} // namespace

KernelArchive::KernelArchive(std::string base64) : mBase64(std::move(base64)), mBytes(decodeBase64(mBase64)) {
    Header header{};
    if (mBytes.size() < sizeof(header)) {
        throw Problem("this node carries no kernels (attribute 'kernels')", "use the plugin.onnx of a bundle that was built with kernels");
    }
    std::memcpy(&header, mBytes.data(), sizeof(header));
    if (std::memcmp(header.magic, "GMFKRN02", sizeof(header.magic)) != 0) {
        throw Problem("the attribute 'kernels' is not a kernel archive that this library reads", kCompileAgain);
    }
    if (header.count == 0 || header.count > (mBytes.size() - sizeof(header)) / sizeof(Record)) {
        throw Problem("the kernel archive is cut short", kCompileAgain);
    }
    for (uint32_t i = 0; i < header.count; ++i) {
        Record record{};
        std::memcpy(&record, mBytes.data() + sizeof(header) + i * sizeof(record), sizeof(record));
        if (record.offset > mBytes.size() || record.size > mBytes.size() - record.offset || record.size == 0) {
            throw Problem("the kernel archive is cut short", kCompileAgain);
        }
        KernelImage image{textOf(record.kernel, sizeof(record.kernel)), textOf(record.entry, sizeof(record.entry)), record.arch,
            record.segmentDim, static_cast<ElementType>(record.type), static_cast<TilingName>(record.tiling), record.tileTokens,
            record.parts, record.warps, record.sharedBytes, record.arguments, record.scale, record.epsilon, std::string_view(mBytes).substr(record.offset, record.size), {}};
        std::copy(std::begin(record.sha256), std::end(record.sha256), image.sha256.begin());
        if (sha256(image.cubin.data(), image.cubin.size()) != image.sha256) {
            throw Problem("kernel " + image.kernel + " for sm_" + std::to_string(image.arch) + " does not match its digest", kCompileAgain);
        }
        mImages.push_back(std::move(image));
    }
}

KernelImage const& KernelArchive::imageOf(std::string_view kernel, TilingName tiling, uint32_t arch) const {
    std::set<uint32_t> held;
    KernelImage const* older = nullptr;
    for (KernelImage const& image : mImages) {
        bool const wanted = image.kernel == kernel && image.tiling == tiling;
        if (wanted && image.arch == arch) {
            return image;
        }
        if (wanted && runsOn(image.arch, arch) && (older == nullptr || image.arch > older->arch)) {
            older = &image;
        }
        held.insert(image.arch);
    }
    if (older != nullptr) {
        return *older;
    }
    std::string list;
    for (uint32_t const other : held) {
        list += (list.empty() ? "sm_" : ", sm_") + std::to_string(other);
    }
    std::string const wanted = "sm_" + std::to_string(arch);
    throw Problem("the kernels of this model are for " + list + ", this GPU is " + wanted,
        "compile them with 'gmf-edge kernels compile --arch " + wanted + "' and build a new engine");
}

} // namespace gmf_edge
