// float16 on the CPU, to be read only; infinities and NaN are left out.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;

  explicit operator float() const {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float size = std::ldexp(static_cast<float>(exponent > 0 ? 1024 + fraction : fraction),
                                  (exponent > 0 ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
  }
};
