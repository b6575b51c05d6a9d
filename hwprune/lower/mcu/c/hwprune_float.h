/* Functions of one float, and softmax, for networks in float32. Meanings are PyTorch's. */
#ifndef HWPRUNE_FLOAT_H
#define HWPRUNE_FLOAT_H
#include <math.h>
#include <stdint.h>

#include "hwprune_kernels.h"

/* a * b + acc: in one step where the core has it. */
HWPRUNE_INLINE float hwprune_fma(float a, float b, float acc) {
#if defined(__ARM_FEATURE_FMA) && defined(__ARM_FP) && (__ARM_FP & 4)
  return fmaf(a, b, acc);
#else
  return acc + a * b;
#endif
}

HWPRUNE_INLINE float hwprune_float_clamp(float x, float low, float high) {
  return x < low ? low : x > high ? high : x;
}

HWPRUNE_INLINE float hwprune_float_sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

HWPRUNE_INLINE float hwprune_float_silu(float x) {
  return x / (1.0f + expf(-x));
}

HWPRUNE_INLINE float hwprune_float_hardsigmoid(float x) {
  return hwprune_float_clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f;
}

HWPRUNE_INLINE float hwprune_float_hardswish(float x) {
  return x * hwprune_float_clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f;
}

HWPRUNE_INLINE float hwprune_float_tanh(float x) {
  return tanhf(x);
}

HWPRUNE_INLINE float hwprune_float_leaky_relu(float x, float slope) {
  return x > 0.0f ? x : x * slope;
}

HWPRUNE_INLINE float hwprune_float_elu(float x, float alpha) {
  return x > 0.0f ? x : alpha * expm1f(x);
}

HWPRUNE_INLINE float hwprune_float_gelu(float x) {
  return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
}

HWPRUNE_INLINE float hwprune_float_gelu_tanh(float x) {
  return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
}

/* Softmax over n values. */
HWPRUNE_INLINE void hwprune_float_softmax(float *y, const float *x, int32_t n) {
  float top = x[0], total = 0.0f;
  for (int32_t i = 1; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
  }
  for (int32_t i = 0; i < n; ++i) {
    y[i] = expf(x[i] - top);
    total += y[i];
  }
  for (int32_t i = 0; i < n; ++i) {
    y[i] /= total;
  }
}

#endif
