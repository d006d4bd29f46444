// Runs csrc's row kernel on the CPU, in float32: a cluster of blocks a row, logits taken four at a time or singly.
#include "linear_kl/rows.cuh"

using namespace lcc::linear_kl;

namespace {

template <Kind kind>
void run_row(const Arguments& arguments, int row, int blocks, bool wide) {
  HostCluster::run(row, blocks, kThreads, [&] {
    if (wide) {
      divergence_rows<float, kind, 4>(arguments);
    } else {
      divergence_rows<float, kind, 1>(arguments);
    }
  });
}

}  // namespace

extern "C" void run_rows(float* student, const float* teacher, float* loss, const float* row_weight, int rows, int vocab,
                         int stride, int kind, float inner, float outer, bool capped, float beta, bool with_grad,
                         int blocks, bool wide) {
  const Arguments arguments{student, teacher, loss,  row_weight,             stride, stride,
                            rows,    vocab,   {inner, outer, capped}, beta,   with_grad};
  for (int row = 0; row < rows; ++row) {
    switch (static_cast<Kind>(kind)) {
      case Kind::kForward: run_row<Kind::kForward>(arguments, row, blocks, wide); break;
      case Kind::kReverse: run_row<Kind::kReverse>(arguments, row, blocks, wide); break;
      case Kind::kJsd: run_row<Kind::kJsd>(arguments, row, blocks, wide); break;
      case Kind::kMse: run_row<Kind::kMse>(arguments, row, blocks, wide); break;
    }
  }
}
