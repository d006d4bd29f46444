// Neighbouring numbers that are loaded or stored in one access.
#pragma once

namespace lcc {

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T values[kWidth];
};

}  // namespace lcc
