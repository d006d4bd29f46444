// The arithmetic of the losses on float32 logits, for one thread: no framework, no memory. Compiles as plain C++ too.
// Exponents and logarithms are of base 2: the factor on the logits then costs one fused multiply-add.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define LCC_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LCC_HOST_DEVICE inline
#endif

namespace lcc::linear_kl {

enum class Kind { kForward, kReverse, kJsd, kMse };

// What is done to a raw logit before it is multiplied by a scale > 0.
enum class Shape { kPlain, kNegated, kCapped };

// Where a maximum starts. It is finite, since differences are taken of maxima.
constexpr float kLowest = -1e38f;
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

// One instruction on a GPU, where exp2f takes four more for results below 2^-126, which here are as good as 0.
LCC_HOST_DEVICE float fast_exp2(float x) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

// weight * value, 0 where the weight is 0: also of an infinite value, or of the difference of two.
LCC_HOST_DEVICE float weighed(float weight, float value) { return weight * (weight == 0.0f ? 0.0f : value); }

// Raw logit to x, where z = scale * x is what the loss is about.
struct Transform {
  float inner;
  float scale;
  float factor;  // dz/d(raw logit), but for the derivative of tanh

  template <Shape shape>
  LCC_HOST_DEVICE float apply(float raw) const {
    if constexpr (shape == Shape::kCapped) return tanhf(inner * raw);
    return shape == Shape::kNegated ? -raw : raw;
  }

  // dz/d(raw logit) / factor, given x.
  template <Shape shape>
  static LCC_HOST_DEVICE float slope(float x) {
    return shape == Shape::kCapped ? 1.0f - x * x : 1.0f;
  }
};

// KL(lead || trail) of a row in bits, a few logits at a time: cross / lead_sum is the mean of lead - trail under lead,
// everything relative to peaks that may still rise (online softmax, arXiv 1805.02867).
struct Moments {
  float lead_peak = kLowest;
  float trail_peak = kLowest;
  float lead_sum = 0.0f;
  float trail_sum = 0.0f;
  float cross = 0.0f;

  template <int kCount>
  LCC_HOST_DEVICE void add(const float (&lead)[kCount], const float (&trail)[kCount], float scale) {
    float lead_top = lead[0], trail_top = trail[0];
    for (int i = 1; i < kCount; ++i) {
      lead_top = fmaxf(lead_top, lead[i]);
      trail_top = fmaxf(trail_top, trail[i]);
    }
    raise_to(fmaxf(lead_peak, lead_top * scale), fmaxf(trail_peak, trail_top * scale));
    for (int i = 0; i < kCount; ++i) {
      const float l = fmaf(lead[i], scale, -lead_peak), t = fmaf(trail[i], scale, -trail_peak);
      const float likelihood = fast_exp2(l);
      lead_sum += likelihood;
      trail_sum += fast_exp2(t);
      cross += weighed(likelihood, l - t);
    }
  }

  LCC_HOST_DEVICE void merge(Moments other) {
    other.raise_to(fmaxf(lead_peak, other.lead_peak), fmaxf(trail_peak, other.trail_peak));
    raise_to(other.lead_peak, other.trail_peak);
    lead_sum += other.lead_sum;
    trail_sum += other.trail_sum;
    cross += other.cross;
  }

  LCC_HOST_DEVICE float divergence() const { return cross / lead_sum - log2f(lead_sum) + log2f(trail_sum); }

 private:
  LCC_HOST_DEVICE void raise_to(float new_lead_peak, float new_trail_peak) {
    const float moved = (new_lead_peak - lead_peak) - (new_trail_peak - trail_peak);
    const float decay = fast_exp2(lead_peak - new_lead_peak);
    cross = weighed(decay, cross - lead_sum * moved);
    lead_sum *= decay;
    trail_sum *= fast_exp2(trail_peak - new_trail_peak);
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

// log(own / mixture), given log(other / own) and the other's share of the mixture; no overflow at any ratio.
LCC_HOST_DEVICE float log2_share(float log_ratio, float share) {
  const float top = fmaxf(log_ratio, 0.0f);
  return -top - log2f((1.0f - share) * fast_exp2(-top) + share * fast_exp2(log_ratio - top));
}

// A whole row's distributions: what each logit adds to the loss of kJsd, and its gradient.
template <Kind kind>
struct Row {
  float scale, beta;
  float s_peak, t_peak, s_log_sum, t_log_sum;
  float s_factor, t_factor;  // factors of the exponentials in the gradient: a probability, times what is constant
  float centre;              // in bits

  LCC_HOST_DEVICE Row(const Moments& m, const Transform& transform, float beta) : scale(transform.scale * kLog2E), beta(beta) {
    constexpr bool student_leads = kind == Kind::kReverse;
    s_peak = student_leads ? m.lead_peak : m.trail_peak;
    t_peak = student_leads ? m.trail_peak : m.lead_peak;
    const float s_sum = student_leads ? m.lead_sum : m.trail_sum, t_sum = student_leads ? m.trail_sum : m.lead_sum;
    s_log_sum = log2f(s_sum);
    t_log_sum = log2f(t_sum);
    s_factor = transform.factor / s_sum;
    t_factor = transform.factor / t_sum;
    if (kind != Kind::kForward) s_factor *= kLn2;
    if (kind == Kind::kJsd) s_factor *= 1.0f - beta;
    centre = m.cross / m.lead_sum;
  }

  // One token's part of KL(student || mixture) and KL(teacher || mixture), mixture = beta teacher + (1 - beta) student.
  LCC_HOST_DEVICE Sums mixture_terms(float s, float t) const {
    const float log_p = s_log(s) - s_log_sum, log_q = t_log(t) - t_log_sum;
    return {weighed(fast_exp2(log_p), log2_share(log_q - log_p, beta)),
            weighed(fast_exp2(log_q), log2_share(log_p - log_q, 1.0f - beta))};
  }

  // Gradient of the loss in the student's raw logit, but for the derivative of tanh.
  LCC_HOST_DEVICE float gradient(float s, float t) const {
    const float log_p = s_log(s), log_q = t_log(t);
    const float p = fast_exp2(log_p) * s_factor;
    if (kind == Kind::kForward) return p - fast_exp2(log_q) * t_factor;
    if (kind == Kind::kReverse) return weighed(p, log_p - log_q - centre);
    return weighed(p, log2_share((log_q - t_log_sum) - (log_p - s_log_sum), beta) - centre);
  }

 private:
  LCC_HOST_DEVICE float s_log(float s) const { return fmaf(s, scale, -s_peak); }
  LCC_HOST_DEVICE float t_log(float t) const { return fmaf(t, scale, -t_peak); }
};

}  // namespace lcc::linear_kl
