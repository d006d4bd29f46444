// Runs csrc's row kernel on the CPU, in float32: a cluster of blocks a row, logits taken four at a time or singly.
#include "linear_kl/rows.cuh"

using namespace lcc::linear_kl;

namespace {

template <Kind kind, Shape shape>
void run_row(const Arguments& arguments, int row, int blocks, bool wide) {
  HostCluster::run(row, blocks, kThreads, [&] {
    if (wide) {
      divergence_rows<float, kind, shape, 4>(arguments);
    } else {
      divergence_rows<float, kind, shape, 1>(arguments);
    }
  });
}

template <Kind kind>
void run_shape(const Arguments& arguments, Shape shape, int row, int blocks, bool wide) {
  switch (shape) {
    case Shape::kPlain: run_row<kind, Shape::kPlain>(arguments, row, blocks, wide); break;
    case Shape::kNegated: run_row<kind, Shape::kNegated>(arguments, row, blocks, wide); break;
    case Shape::kCapped: run_row<kind, Shape::kCapped>(arguments, row, blocks, wide); break;
  }
}

}  // namespace

extern "C" void run_rows(float* student, const float* teacher, float* loss, const float* row_weight, int rows, int vocab,
                         int64_t student_stride, int64_t teacher_stride, int kind, int shape, float inner, float scale, float factor, float beta,
                         bool with_grad, int blocks, bool wide) {
  const Arguments arguments{student, teacher, loss, row_weight, student_stride, teacher_stride,
                            rows, vocab, {inner, scale, factor}, beta, with_grad};
  for (int row = 0; row < rows; ++row) {
    switch (static_cast<Kind>(kind)) {
      case Kind::kForward: run_shape<Kind::kForward>(arguments, Shape(shape), row, blocks, wide); break;
      case Kind::kReverse: run_shape<Kind::kReverse>(arguments, Shape(shape), row, blocks, wide); break;
      case Kind::kJsd: run_shape<Kind::kJsd>(arguments, Shape(shape), row, blocks, wide); break;
      case Kind::kMse: run_shape<Kind::kMse>(arguments, Shape(shape), row, blocks, wide); break;
    }
  }
}
