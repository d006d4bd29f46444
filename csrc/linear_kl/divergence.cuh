// The arithmetic of the losses on float32 logits, for one thread: no framework, no memory. Compiles as plain C++ too.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define LCC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LCC_HOST_DEVICE inline
#endif

namespace lcc::linear_kl {

enum class Kind { kForward, kReverse, kJsd, kMse };

// Below every logit, and still finite: differences are taken of logits beyond the vocabulary and of peaks.
constexpr float kLowest = -1e38f;

// Raw logit x to z = outer * tanh(inner * x), or inner * outer * x where nothing is capped.
struct Transform {
  float inner;
  float outer;
  bool capped;

  LCC_HOST_DEVICE float operator()(float x) const { return outer * (capped ? tanhf(inner * x) : inner * x); }

  // dz/dx, given z.
  LCC_HOST_DEVICE float slope(float z) const {
    const float tanh = capped ? z / outer : 0.0f;
    return inner * outer * (1.0f - tanh * tanh);
  }
};

// KL(lead || trail) of a row, a few logits at a time: cross / lead_sum is the mean of lead - trail under lead,
// everything relative to peaks that may still rise (online softmax, arXiv 1805.02867).
struct Moments {
  float lead_peak = kLowest;
  float trail_peak = kLowest;
  float lead_sum = 0.0f;
  float trail_sum = 0.0f;
  float cross = 0.0f;

  template <int kCount>
  LCC_HOST_DEVICE void add(const float (&lead)[kCount], const float (&trail)[kCount]) {
    float new_lead_peak = lead_peak, new_trail_peak = trail_peak;
    for (int i = 0; i < kCount; ++i) {
      new_lead_peak = fmaxf(new_lead_peak, lead[i]);
      new_trail_peak = fmaxf(new_trail_peak, trail[i]);
    }
    raise_to(new_lead_peak, new_trail_peak);
    for (int i = 0; i < kCount; ++i) {
      const float l = lead[i] - lead_peak, t = trail[i] - trail_peak;
      const float likelihood = expf(l);
      lead_sum += likelihood;
      trail_sum += expf(t);
      cross += likelihood * (l - t);
    }
  }

  LCC_HOST_DEVICE void merge(Moments other) {
    other.raise_to(fmaxf(lead_peak, other.lead_peak), fmaxf(trail_peak, other.trail_peak));
    raise_to(other.lead_peak, other.trail_peak);
    lead_sum += other.lead_sum;
    trail_sum += other.trail_sum;
    cross += other.cross;
  }

  LCC_HOST_DEVICE float divergence() const { return cross / lead_sum - logf(lead_sum) + logf(trail_sum); }

 private:
  LCC_HOST_DEVICE void raise_to(float new_lead_peak, float new_trail_peak) {
    const float moved = (new_lead_peak - new_trail_peak) - (lead_peak - trail_peak);
    const float decay = expf(lead_peak - new_lead_peak);
    cross = (cross - lead_sum * moved) * decay;
    lead_sum *= decay;
    trail_sum *= expf(trail_peak - new_trail_peak);
    lead_peak = new_lead_peak;
    trail_peak = new_trail_peak;
  }
};

// Two plain sums over a row.
struct Sums {
  float first = 0.0f;
  float second = 0.0f;

  LCC_HOST_DEVICE void merge(Sums other) {
    first += other.first;
    second += other.second;
  }
};

// Transformed logits to log-probabilities.
struct Normalizer {
  float s_peak;
  float s_log_sum;
  float t_peak;
  float t_log_sum;

  LCC_HOST_DEVICE Normalizer(const Moments& m, Kind kind)
      : s_peak(m.trail_peak), s_log_sum(logf(m.trail_sum)), t_peak(m.lead_peak), t_log_sum(logf(m.lead_sum)) {
    if (kind == Kind::kReverse) {
      s_peak = m.lead_peak, s_log_sum = logf(m.lead_sum), t_peak = m.trail_peak, t_log_sum = logf(m.trail_sum);
    }
  }

  LCC_HOST_DEVICE float log_p(float s) const { return s - s_peak - s_log_sum; }
  LCC_HOST_DEVICE float log_q(float t) const { return t - t_peak - t_log_sum; }
};

// log(own / mixture), given log(other / own) and the other's share of the mixture; no overflow at any ratio.
LCC_HOST_DEVICE float log_share(float log_ratio, float share) {
  const float top = fmaxf(log_ratio, 0.0f);
  return -top - logf((1.0f - share) * expf(-top) + share * expf(log_ratio - top));
}

// One token's part of KL(student || mixture) and KL(teacher || mixture), mixture = beta teacher + (1 - beta) student.
LCC_HOST_DEVICE Sums mixture_terms(float log_p, float log_q, float beta) {
  return {expf(log_p) * log_share(log_q - log_p, beta), expf(log_q) * log_share(log_p - log_q, 1.0f - beta)};
}

// Gradient of a row's loss in one transformed student logit. centre: the row's KL(student || teacher) for kReverse, its
// KL(student || mixture) for kJsd.
LCC_HOST_DEVICE float gradient(Kind kind, float log_p, float log_q, float centre, float beta) {
  const float p = expf(log_p);
  if (kind == Kind::kForward) return p - expf(log_q);
  if (kind == Kind::kReverse) return p * (log_p - log_q - centre);
  return (1.0f - beta) * p * (log_share(log_q - log_p, beta) - centre);
}

}  // namespace lcc::linear_kl
