// SHA-256 (FIPS 180-4), to tell a kernel from a damaged or foreign one without a cryptography library on the device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace gmf_edge {

std::array<uint8_t, 32> sha256(void const* bytes, size_t size);

} // namespace gmf_edge
