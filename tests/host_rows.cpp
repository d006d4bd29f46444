// Runs csrc's row arithmetic on the CPU as the kernel does: interleaved lanes of four logits, merged in a tree.
#include "kl/divergence.cuh"

#include <vector>

using namespace lcc::kl;

namespace {

constexpr int kWidth = 4;

struct Row {
  const float* student;
  const float* teacher;
  int vocab;
  Transform transform;

  float at(const float* logits, int column) const { return column < vocab ? transform(logits[column]) : kLowest; }
};

Moments lane_moments(const Row& row, int first, int step, bool student_leads) {
  Moments moments;
  for (int column = first; column < row.vocab; column += step) {
    float lead[kWidth], trail[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      lead[i] = row.at(student_leads ? row.student : row.teacher, column + i);
      trail[i] = row.at(student_leads ? row.teacher : row.student, column + i);
    }
    moments.add(lead, trail);
  }
  return moments;
}

}  // namespace

extern "C" float divergence_row(const float* student, const float* teacher, int vocab, int kind_index, float inner,
                                float outer, bool capped, float beta, int lanes, float* logit_gradient) {
  const Row row{student, teacher, vocab, {inner, outer, capped}};
  const Kind kind = static_cast<Kind>(kind_index);
  std::vector<Moments> moments;
  for (int lane = 0; lane < lanes; ++lane) {
    moments.push_back(lane_moments(row, lane * kWidth, lanes * kWidth, kind == Kind::kReverse));
  }
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) moments[lane].merge(moments[lane + half]);
  }
  const Normalizer normalizer(moments[0], kind);
  float loss = moments[0].divergence(), centre = loss;
  if (kind == Kind::kJsd) {
    Sums sums;
    for (int column = 0; column < vocab; ++column) {
      const float s = row.at(student, column), t = row.at(teacher, column);
      sums.merge(mixture_terms(normalizer.log_p(s), normalizer.log_q(t), beta));
    }
    centre = sums.first;
    loss = beta * sums.second + (1.0f - beta) * sums.first;
  }
  for (int column = 0; column < vocab; ++column) {
    const float s = row.at(student, column), t = row.at(teacher, column);
    const float g = gradient(kind, normalizer.log_p(s), normalizer.log_q(t), centre, beta);
    logit_gradient[column] = g * row.transform.slope(s);
  }
  return fmaxf(loss, 0.0f);
}
