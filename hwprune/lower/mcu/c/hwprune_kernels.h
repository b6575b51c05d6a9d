/* Arithmetic of the kernels in model.c: DSP instructions and Helium where the core has them, portable
   C elsewhere. Both give the same bits. */
#ifndef HWPRUNE_KERNELS_H
#define HWPRUNE_KERNELS_H
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && defined(__OPTIMIZE__) && defined(__ARM_FEATURE_DSP)
#include <arm_acle.h>
#define HWPRUNE_DSP 1
#else
#define HWPRUNE_DSP 0
#endif
#if HWPRUNE_DSP && defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#include <arm_mve.h>
#define HWPRUNE_MVE 1
#else
#define HWPRUNE_MVE 0
#endif

/* Assembly of Helium is written for GCC's constraints. */
#if HWPRUNE_MVE && !defined(__clang__)
#define HWPRUNE_MVE_ASM 1
#else
#define HWPRUNE_MVE_ASM 0
#endif

#if defined(__GNUC__)
#define HWPRUNE_INLINE static inline __attribute__((always_inline, unused))
#else
#define HWPRUNE_INLINE static inline
#endif

/* Kernels stay functions of their own: their inner loops leave no register for anything else. */
#if defined(__GNUC__) && !defined(__clang__)
#define HWPRUNE_KERNEL static __attribute__((noinline, noclone))
#elif defined(__GNUC__)
#define HWPRUNE_KERNEL static __attribute__((noinline))
#else
#define HWPRUNE_KERNEL static
#endif

/* Volatile: keeps GCC's scheduler from filling more registers with loads than there are. */
#define HWPRUNE_ASM __asm__ volatile

#if defined(__clang__)
#define HWPRUNE_UNROLL _Pragma("unroll 16")
#elif defined(__GNUC__)
#define HWPRUNE_UNROLL _Pragma("GCC unroll 16")
#else
#define HWPRUNE_UNROLL
#endif

/* Between writing a scratch buffer and reading it from assembly that names no memory. */
#if defined(__GNUC__)
#define HWPRUNE_BARRIER __asm__ volatile("" ::: "memory")
#else
#define HWPRUNE_BARRIER ((void)0)
#endif

HWPRUNE_INLINE int32_t hwprune_load32(const void *p) {
  int32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

HWPRUNE_INLINE void hwprune_store32(void *p, int32_t v) {
  memcpy(p, &v, sizeof v);
}

HWPRUNE_INLINE void hwprune_barrier(void) {
  HWPRUNE_BARRIER;
}

/* Two int16 in a word, the first one low. */
HWPRUNE_INLINE int32_t hwprune_pair(int32_t low, int32_t high) {
#if HWPRUNE_DSP
  int32_t r;
  __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(r) : "r"(low), "r"(high));
  return r;
#else
  return (int32_t)(((uint32_t)low & 0xFFFFu) | ((uint32_t)high << 16));
#endif
}

/* The high halves of two words: that of `low` low. */
HWPRUNE_INLINE int32_t hwprune_pair_high(int32_t low, int32_t high) {
#if HWPRUNE_DSP
  int32_t r;
  __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(r) : "r"(high), "r"(low));
  return r;
#else
  return (int32_t)(((uint32_t)low >> 16) | ((uint32_t)high & 0xFFFF0000u));
#endif
}

HWPRUNE_INLINE int32_t hwprune_low(int32_t pair) {
  return (int16_t)(uint16_t)((uint32_t)pair & 0xFFFFu);
}

HWPRUNE_INLINE int32_t hwprune_high(int32_t pair) {
  return (int16_t)(uint16_t)((uint32_t)pair >> 16);
}

/* Sign-extended bytes 0 and 2 of a word. */
HWPRUNE_INLINE int32_t hwprune_even(int32_t v) {
#if HWPRUNE_DSP
  return (int32_t)__sxtb16(v);
#else
  const uint32_t u = (uint32_t)v;
  return hwprune_pair((int8_t)(uint8_t)(u & 255u), (int8_t)(uint8_t)((u >> 16) & 255u));
#endif
}

/* Sign-extended bytes 1 and 3 of a word. */
HWPRUNE_INLINE int32_t hwprune_odd(int32_t v) {
#if HWPRUNE_DSP
  int32_t r;
  __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(v));
  return r;
#else
  return hwprune_even((int32_t)((uint32_t)v >> 8));
#endif
}

/* acc + low * low + high * high. */
HWPRUNE_INLINE int32_t hwprune_smlad(int32_t a, int32_t b, int32_t acc) {
#if HWPRUNE_DSP
  HWPRUNE_ASM("smlad %0, %1, %2, %0" : "+r"(acc) : "r"(a), "r"(b));
  return acc;
#else
  return acc + hwprune_low(a) * hwprune_low(b) + hwprune_high(a) * hwprune_high(b);
#endif
}

/* x * multiplier / 2^31, rounded; |x| < 2^30. */
HWPRUNE_INLINE int32_t hwprune_high_mul(int32_t x, int32_t multiplier) {
#if HWPRUNE_DSP
  int32_t r;
  __asm__("smmulr %0, %1, %2" : "=r"(r) : "r"(x * 2), "r"(multiplier));
  return r;
#else
  return (int32_t)(((int64_t)x * multiplier + (1 << 30)) >> 31);
#endif
}

HWPRUNE_INLINE int32_t hwprune_clamp(int32_t x, int32_t low, int32_t high) {
#if HWPRUNE_DSP
  if (low == -128 && high == 127) {
    __asm__("ssat %0, #8, %1" : "=r"(x) : "r"(x));
    return x;
  }
#endif
  return x < low ? low : x > high ? high : x;
}

/* x / 2^right to the nearest, halves away from zero; 0 <= right <= 31. */
HWPRUNE_INLINE int32_t hwprune_round_shift(int32_t x, int32_t right) {
  const int32_t mask = (int32_t)((1u << right) - 1u);
  const int32_t threshold = (mask >> 1) + (x < 0);
  return (x >> right) + ((x & mask) > threshold);
}

/* (2ab + 2^31) >> 32, saturated. */
HWPRUNE_INLINE int32_t hwprune_doubling_high_mul(int32_t a, int32_t b) {
  if (a == INT32_MIN && b == INT32_MIN) {
    return INT32_MAX;
  }
  return (int32_t)(((int64_t)a * b + (1 << 30)) >> 31);
}

/* x * multiplier * 2^(shift - 31), rounded twice: any shift, any x with room for it. */
HWPRUNE_INLINE int32_t hwprune_requantize(int32_t x, int32_t multiplier, int32_t shift) {
  const int32_t left = shift > 0 ? shift : 0;
  const int32_t right = shift > 0 ? 0 : -shift;
  return hwprune_round_shift(
      hwprune_doubling_high_mul((int32_t)((uint32_t)x << left), multiplier), right);
}

/* The same and the zero point added, for |x| < 2^30 and 1 <= right <= 22.
   start = (2 * zero_point + 1) * 2^(right - 1). */
HWPRUNE_INLINE int32_t hwprune_scale(int32_t x, int32_t multiplier, int32_t start, int32_t right) {
  const int32_t t = hwprune_high_mul(x, multiplier);
  return (t + (t >> 31) + start) >> right;
}

/* The same of 2x, which saves the doubling. */
HWPRUNE_INLINE int32_t hwprune_scale_twice(
    int32_t twice, int32_t multiplier, int32_t start, int32_t right) {
#if HWPRUNE_DSP
  int32_t t;
  __asm__("smmulr %0, %1, %2" : "=r"(t) : "r"(twice), "r"(multiplier));
#else
  const int32_t t = (int32_t)(((int64_t)twice * multiplier + (1u << 31)) >> 32);
#endif
  return (t + (t >> 31) + start) >> right;
}

/* Both halves of a word doubled; they have room for it. */
HWPRUNE_INLINE int32_t hwprune_twice(int32_t pair) {
#if HWPRUNE_DSP
  return (int32_t)__sadd16(pair, pair);
#else
  return hwprune_pair(2 * hwprune_low(pair), 2 * hwprune_high(pair));
#endif
}

/* Widen n bytes to int16 pairs, every `pitch` words; n a multiple of four. Within four the order is
   0, 2, 1, 3, as sign extension leaves them. */
HWPRUNE_INLINE void hwprune_widen4(int16_t *to, const int8_t *from, int32_t n, int32_t pitch) {
  const int8_t *const end = from + n;
  while (from < end) {
    const int32_t v = hwprune_load32(from);
    hwprune_store32(to, hwprune_even(v));
    hwprune_store32(to + 2 * pitch, hwprune_odd(v));
    from += 4;
    to += 4 * pitch;
  }
}

/* Widen n bytes in their order, from element k of a column whose pairs lie `pitch` words apart. */
HWPRUNE_INLINE void hwprune_widen(
    int16_t *to, const int8_t *from, int32_t n, int32_t k, int32_t pitch) {
  const int8_t *const end = from + n;
  to += (k >> 1) * 2 * pitch;
  if ((k & 1) && from < end) {
    to[1] = *from++;
    to += 2 * pitch;
  }
  for (; from + 3 < end; from += 4, to += 4 * pitch) {
    const int32_t v = hwprune_load32(from), even = hwprune_even(v), odd = hwprune_odd(v);
    hwprune_store32(to, hwprune_pair(even, odd));
    hwprune_store32(to + 2 * pitch, hwprune_pair_high(even, odd));
  }
  for (; from + 1 < end; from += 2, to += 2 * pitch) {
    hwprune_store32(to, hwprune_pair(from[0], from[1]));
  }
  if (from < end) {
    to[0] = *from;
  }
}

/* Fill n elements of such a column from element k. */
HWPRUNE_INLINE void hwprune_fill(
    int16_t *to, int32_t value, int32_t n, int32_t k, int32_t pitch) {
  const int32_t both = hwprune_pair(value, value);
  to += (k >> 1) * 2 * pitch;
  if ((k & 1) && n > 0) {
    to[1] = (int16_t)value;
    to += 2 * pitch;
    --n;
  }
  for (; n > 1; n -= 2, to += 2 * pitch) {
    hwprune_store32(to, both);
  }
  if (n > 0) {
    to[0] = (int16_t)value;
  }
}

/* n neighbours of a row of one channel. Volatile: GCC would otherwise join neighbouring values, which
   costs more than it saves. */
#define HWPRUNE_WIDEN_ROW(n)               \
  for (int32_t k = 0; k < (n); ++k) {      \
    ((volatile int16_t *)t)[k] = f[k * step]; \
  }                                        \
  t += (n);                                \
  f += (n) * step

/* One channel of an image as rows of int16, `pitch` apart; pixels lie `step` bytes apart. */
HWPRUNE_INLINE void hwprune_plane(int16_t *to, const int8_t *from, int32_t rows, int32_t columns,
                                  int32_t row_bytes, int32_t pitch, int32_t step) {
  for (int32_t r = 0; r < rows; ++r, to += pitch, from += row_bytes) {
    int16_t *t = to;
    const int8_t *f = from;
    for (const int16_t *const end = t + (columns & ~7); t < end;) {
      HWPRUNE_UNROLL HWPRUNE_WIDEN_ROW(8);
    }
    if (columns & 4) {
      HWPRUNE_UNROLL HWPRUNE_WIDEN_ROW(4);
    }
    if (columns & 2) {
      HWPRUNE_UNROLL HWPRUNE_WIDEN_ROW(2);
    }
    if (columns & 1) {
      *t = *f;
    }
  }
}

/* total / count to the nearest, halves away from zero. */
HWPRUNE_INLINE int32_t hwprune_mean(int32_t total, int32_t count) {
  return total < 0 ? -((count / 2 - total) / count) : (total + count / 2) / count;
}

/* hwprune_requantize of |x| < 2^30 where nothing is shifted left. */
HWPRUNE_INLINE int32_t hwprune_reduce(int32_t x, int32_t multiplier, int32_t right) {
  const int32_t t = hwprune_high_mul(x, multiplier);
  return right ? (t + (t >> 31) + (int32_t)(1u << (right - 1))) >> right : t;
}

/* int8 of a float: halves away from zero, saturated. */
HWPRUNE_INLINE int32_t hwprune_quantize(float x, float scale, int32_t zero_point) {
  const float ratio = x / scale;
  const float whole = ratio < 0.0f ? ceilf(ratio - 0.5f) : floorf(ratio + 0.5f);
  const float near = whole < -1024.0f ? -1024.0f : whole > 1024.0f ? 1024.0f : whole;
  return hwprune_clamp((int32_t)near + zero_point, -128, 127);
}

/* Step `s` of two channels by four columns: a pair of inputs each.
   w: (a0 b0 a1 b1) of channels a and b. x: the pairs of four columns. acc: four of a, four of b. */
HWPRUNE_INLINE void hwprune_halves_2x4(
    int32_t *acc, const int8_t *w, const int16_t *x, const int32_t s) {
#if HWPRUNE_DSP
  int32_t odd = hwprune_load32(w + 4 * s), even, x0, x1;
  HWPRUNE_ASM(
      "ldrd %[x0], %[x1], [%[x], %[p]]\n\t"
      "sxtb16 %[even], %[odd]\n\t"
      "sxtb16 %[odd], %[odd], ror #8\n\t"
      "smlad %[a0], %[even], %[x0], %[a0]\n\t"
      "smlad %[b0], %[odd], %[x0], %[b0]\n\t"
      "smlad %[a1], %[even], %[x1], %[a1]\n\t"
      "smlad %[b1], %[odd], %[x1], %[b1]"
      : [x0] "=&r"(x0), [x1] "=&r"(x1), [even] "=&r"(even), [odd] "+r"(odd), [a0] "+r"(acc[0]),
        [a1] "+r"(acc[1]), [b0] "+r"(acc[4]), [b1] "+r"(acc[5])
      : [x] "r"(x), [p] "i"(16 * s));
  HWPRUNE_ASM(
      "ldrd %[x0], %[x1], [%[x], %[p]]\n\t"
      "smlad %[a2], %[even], %[x0], %[a2]\n\t"
      "smlad %[b2], %[odd], %[x0], %[b2]\n\t"
      "smlad %[a3], %[even], %[x1], %[a3]\n\t"
      "smlad %[b3], %[odd], %[x1], %[b3]"
      : [x0] "=&r"(x0), [x1] "=&r"(x1), [a2] "+r"(acc[2]), [a3] "+r"(acc[3]), [b2] "+r"(acc[6]),
        [b3] "+r"(acc[7])
      : [even] "r"(even), [odd] "r"(odd), [x] "r"(x), [p] "i"(16 * s + 8));
#else
  w += 4 * s;
  x += 8 * s;
  for (int32_t c = 0; c < 4; ++c) {
    acc[c] += w[0] * x[2 * c] + w[2] * x[2 * c + 1];
    acc[4 + c] += w[1] * x[2 * c] + w[3] * x[2 * c + 1];
  }
#endif
}

/* The same in one statement. It names 13 registers of 14: for inner loops only. A compiler that has
   not got them there either needs -DHWPRUNE_HALVES, which costs a few per cent. */
HWPRUNE_INLINE void hwprune_dot_2x4(
    int32_t *acc, const int8_t *w, const int16_t *x, const int32_t s) {
#if HWPRUNE_DSP && !defined(HWPRUNE_HALVES)
  int32_t odd = hwprune_load32(w + 4 * s), even, x0, x1;
  HWPRUNE_ASM(
      "ldrd %[x0], %[x1], [%[x], %[p]]\n\t"
      "sxtb16 %[even], %[odd]\n\t"
      "sxtb16 %[odd], %[odd], ror #8\n\t"
      "smlad %[a0], %[even], %[x0], %[a0]\n\t"
      "smlad %[b0], %[odd], %[x0], %[b0]\n\t"
      "smlad %[a1], %[even], %[x1], %[a1]\n\t"
      "smlad %[b1], %[odd], %[x1], %[b1]\n\t"
      "ldrd %[x0], %[x1], [%[x], %[q]]\n\t"
      "smlad %[a2], %[even], %[x0], %[a2]\n\t"
      "smlad %[b2], %[odd], %[x0], %[b2]\n\t"
      "smlad %[a3], %[even], %[x1], %[a3]\n\t"
      "smlad %[b3], %[odd], %[x1], %[b3]"
      : [x0] "=&r"(x0), [x1] "=&r"(x1), [even] "=&r"(even), [odd] "+r"(odd), [a0] "+r"(acc[0]),
        [a1] "+r"(acc[1]), [a2] "+r"(acc[2]), [a3] "+r"(acc[3]), [b0] "+r"(acc[4]),
        [b1] "+r"(acc[5]), [b2] "+r"(acc[6]), [b3] "+r"(acc[7])
      : [x] "r"(x), [p] "i"(16 * s), [q] "i"(16 * s + 8));
#else
  hwprune_halves_2x4(acc, w, x, s);
#endif
}

/* Step `s` of four channels by one column: two pairs of inputs.
   w: (a0 b0 a1 b1) (a2 b2 a3 b3) of channels a and b, then the same of c and d. */
HWPRUNE_INLINE void hwprune_dot_4x1(
    int32_t *acc, const int8_t *w, const int16_t *x, const int32_t s) {
#if HWPRUNE_DSP
  int32_t x0, x1, u, v, t;
  HWPRUNE_ASM(
      "ldrd %[x0], %[x1], [%[x], %[p]]\n\t"
      "ldrd %[u], %[v], [%[w], %[q]]\n\t"
      "sxtb16 %[t], %[u]\n\t"
      "sxtb16 %[u], %[u], ror #8\n\t"
      "smlad %[a], %[t], %[x0], %[a]\n\t"
      "smlad %[b], %[u], %[x0], %[b]\n\t"
      "sxtb16 %[t], %[v]\n\t"
      "sxtb16 %[v], %[v], ror #8\n\t"
      "smlad %[a], %[t], %[x1], %[a]\n\t"
      "smlad %[b], %[v], %[x1], %[b]\n\t"
      "ldrd %[u], %[v], [%[w], %[r]]\n\t"
      "sxtb16 %[t], %[u]\n\t"
      "sxtb16 %[u], %[u], ror #8\n\t"
      "smlad %[c], %[t], %[x0], %[c]\n\t"
      "smlad %[d], %[u], %[x0], %[d]\n\t"
      "sxtb16 %[t], %[v]\n\t"
      "sxtb16 %[v], %[v], ror #8\n\t"
      "smlad %[c], %[t], %[x1], %[c]\n\t"
      "smlad %[d], %[v], %[x1], %[d]"
      : [x0] "=&r"(x0), [x1] "=&r"(x1), [u] "=&r"(u), [v] "=&r"(v), [t] "=&r"(t),
        [a] "+r"(acc[0]), [b] "+r"(acc[1]), [c] "+r"(acc[2]), [d] "+r"(acc[3])
      : [x] "r"(x), [w] "r"(w), [p] "i"(8 * s), [q] "i"(16 * s), [r] "i"(16 * s + 8));
#else
  w += 16 * s;
  x += 4 * s;
  for (int32_t c = 0; c < 4; ++c) {
    const int8_t *const v = w + 8 * (c >> 1) + (c & 1);
    acc[c] += v[0] * x[0] + v[2] * x[1] + v[4] * x[2] + v[6] * x[3];
  }
#endif
}

/* A row of three taps for two neighbouring outputs.
   x + offset: four values, aligned to four bytes; offset < 512. first: (w0, w1). last: (w1, w2). */
HWPRUNE_INLINE void hwprune_row3x2(
    int32_t *acc, const int16_t *x, const int32_t offset, int32_t first, int32_t last) {
#if HWPRUNE_DSP
  int32_t x0, x1;
  HWPRUNE_ASM(
      "ldrd %[x0], %[x1], [%[x], %[p]]\n\t"
      "smlad %[a], %[x0], %[first], %[a]\n\t"
      "smlatb %[b], %[x0], %[first], %[b]\n\t"
      "smlabt %[a], %[x1], %[last], %[a]\n\t"
      "smlad %[b], %[x1], %[last], %[b]"
      : [x0] "=&r"(x0), [x1] "=&r"(x1), [a] "+r"(acc[0]), [b] "+r"(acc[1])
      : [x] "r"(x), [p] "i"(2 * offset), [first] "r"(first), [last] "r"(last));
#else
  x += offset;
  const int32_t w0 = hwprune_low(first), w1 = hwprune_low(last), w2 = hwprune_high(last);
  acc[0] += x[0] * w0 + x[1] * w1 + x[2] * w2;
  acc[1] += x[1] * w0 + x[2] * w1 + x[3] * w2;
#endif
}

/* The same for two outputs two columns apart: five values and one more.
   first: (w0, w1). last: w2 in its high half. */
HWPRUNE_INLINE void hwprune_row3x2_apart(
    int32_t *acc, const int16_t *x, const int32_t offset, int32_t first, int32_t last) {
#if HWPRUNE_DSP
  int32_t x0, x1;
  HWPRUNE_ASM(
      "ldrd %[x0], %[x1], [%[x], %[p]]\n\t"
      "smlad %[a], %[x0], %[first], %[a]\n\t"
      "smlabt %[a], %[x1], %[last], %[a]\n\t"
      "ldr %[x0], [%[x], %[q]]\n\t"
      "smlad %[b], %[x1], %[first], %[b]\n\t"
      "smlabt %[b], %[x0], %[last], %[b]"
      : [x0] "=&r"(x0), [x1] "=&r"(x1), [a] "+r"(acc[0]), [b] "+r"(acc[1])
      : [x] "r"(x), [p] "i"(2 * offset), [q] "i"(2 * offset + 8), [first] "r"(first),
        [last] "r"(last));
#else
  x += offset;
  const int32_t w0 = hwprune_low(first), w1 = hwprune_high(first), w2 = hwprune_high(last);
  acc[0] += x[0] * w0 + x[1] * w1 + x[2] * w2;
  acc[1] += x[2] * w0 + x[3] * w1 + x[4] * w2;
#endif
}

/* The same for one output: three values and one more, aligned to four bytes. */
HWPRUNE_INLINE void hwprune_row3(
    int32_t *acc, const int16_t *x, const int32_t offset, int32_t first, int32_t last) {
#if HWPRUNE_DSP
  int32_t x0, x1;
  HWPRUNE_ASM(
      "ldrd %[x0], %[x1], [%[x], %[p]]\n\t"
      "smlad %[a], %[x0], %[first], %[a]\n\t"
      "smlabt %[a], %[x1], %[last], %[a]"
      : [x0] "=&r"(x0), [x1] "=&r"(x1), [a] "+r"(acc[0])
      : [x] "r"(x), [p] "i"(2 * offset), [first] "r"(first), [last] "r"(last));
#else
  x += offset;
  acc[0] += x[0] * hwprune_low(first) + x[1] * hwprune_low(last) + x[2] * hwprune_high(last);
#endif
}

/* Copy n bytes. */
HWPRUNE_INLINE void hwprune_copy(int8_t *to, const int8_t *from, int32_t n) {
#if HWPRUNE_MVE
  for (; n > 0; n -= 16, to += 16, from += 16) {
    const mve_pred16_t some = vctp8q((uint32_t)n);
    vstrbq_p_s8(to, vldrbq_z_s8(from, some), some);
  }
#else
  memcpy(to, from, (size_t)n);
#endif
}

/* Set n bytes. */
HWPRUNE_INLINE void hwprune_set(int8_t *to, int32_t value, int32_t n) {
#if HWPRUNE_MVE
  for (; n > 0; n -= 16, to += 16) {
    vstrbq_p_s8(to, vdupq_n_s8((int8_t)value), vctp8q((uint32_t)n));
  }
#else
  memset(to, value, (size_t)n);
#endif
}

/* One row by four, `depth` long each (a multiple of 16) and side by side: a channel by four columns,
   or a column by four channels. */
HWPRUNE_INLINE void hwprune_dot_1x4(
    int32_t *acc, const int8_t *one, const int8_t *four, const int32_t depth) {
#if HWPRUNE_MVE
  int32_t a = acc[0], b = acc[1], c = acc[2], d = acc[3];
  const int8_t *const end = one + depth;
  for (; one < end; one += 16, four += 16) {
    const int8x16_t v = vldrbq_s8(one);
    a = vmladavaq_s8(a, v, vldrbq_s8(four));
    b = vmladavaq_s8(b, v, vldrbq_s8(four + depth));
    c = vmladavaq_s8(c, v, vldrbq_s8(four + 2 * depth));
    d = vmladavaq_s8(d, v, vldrbq_s8(four + 3 * depth));
  }
  acc[0] = a;
  acc[1] = b;
  acc[2] = c;
  acc[3] = d;
#else
  for (int32_t j = 0; j < 4; ++j) {
    for (int32_t k = 0; k < depth; ++k) {
      acc[j] += one[k] * four[j * depth + k];
    }
  }
#endif
}

#if HWPRUNE_MVE_ASM
/* hwprune_requantize of four values; `any`: some shift may be to the left, or none. */
HWPRUNE_INLINE int32x4_t hwprune_requantize4(
    int32x4_t x, const int32_t *multiplier, const int32_t *shift, const int32_t any) {
  int32x4_t s = vldrwq_s32(shift);
  if (any) {
    x = vshlq_s32(x, vmaxq_s32(s, vdupq_n_s32(0)));
    s = vminq_s32(s, vdupq_n_s32(0));
  }
  const int32x4_t t = vqrdmulhq_s32(x, vldrwq_s32(multiplier));
  return vrshlq_s32(vaddq_s32(t, vshrq_n_s32(any ? vandq_s32(t, s) : t, 31)), s);
}

/* Two taps, or one, of 16 channels: products summed in int16, then in int32. Assembly, for GCC loads
   ahead until it has to spill; the second load of x1 saves the ninth of eight registers.
   LOAD: what loads an input, with or without predicate. */
#define HWPRUNE_WIDEN_ADD(even, odd)                                                     \
  "vmovlb.s16 %q[c], %q[" even "]\n\tvadd.i32 %q[a0], %q[a0], %q[c]\n\t"                 \
  "vmovlt.s16 %q[c], %q[" even "]\n\tvadd.i32 %q[a1], %q[a1], %q[c]\n\t"                 \
  "vmovlb.s16 %q[c], %q[" odd "]\n\tvadd.i32 %q[a2], %q[a2], %q[c]\n\t"                  \
  "vmovlt.s16 %q[c], %q[" odd "]\n\tvadd.i32 %q[a3], %q[a3], %q[c]"
#define HWPRUNE_TAP(LOAD)                                                                \
  LOAD " %q[a], [%[x0]]\n\tvldrb.8 %q[b], [%[w]], #16\n\t"                               \
  "vmullb.s8 %q[e], %q[a], %q[b]\n\tvmullt.s8 %q[a], %q[a], %q[b]\n\t"
#define HWPRUNE_TAPS(LOAD)                                                               \
  HWPRUNE_TAP(LOAD) LOAD " %q[b], [%[x1]]\n\tvldrb.8 %q[c], [%[w]], #16\n\t"             \
  "vmullb.s8 %q[b], %q[b], %q[c]\n\tvadd.i16 %q[e], %q[e], %q[b]\n\t"                    \
  LOAD " %q[b], [%[x1]]\n\t"                                                             \
  "vmullt.s8 %q[b], %q[b], %q[c]\n\tvadd.i16 %q[a], %q[a], %q[b]\n\t"
#define HWPRUNE_SOME "vpst\n\tvldrbt.8"
#define HWPRUNE_TAPS_OPERANDS                                                            \
  : [a0] "+w"(acc[0]), [a1] "+w"(acc[1]), [a2] "+w"(acc[2]), [a3] "+w"(acc[3]),          \
    [w] "+r"(w), [a] "=&w"(a), [b] "=&w"(b), [c] "=&w"(c), [e] "=&w"(e)                  \
  : [x0] "r"(x0), [x1] "r"(x1)

/* `two` taps at x0 and x1, else x0 alone; the first n channels of 16. Returns the weights after. */
HWPRUNE_INLINE const int8_t *hwprune_taps16(int32x4_t *acc, const int8_t *w, const int8_t *x0,
                                            const int8_t *x1, const int32_t n, const int32_t two) {
  int8x16_t a, b, c, e;
  const mve_pred16_t some = vctp8q((uint32_t)n);
  if (n >= 16 && two) {
    HWPRUNE_ASM(HWPRUNE_TAPS("vldrb.8") HWPRUNE_WIDEN_ADD("e", "a") HWPRUNE_TAPS_OPERANDS);
  } else if (n >= 16) {
    HWPRUNE_ASM(HWPRUNE_TAP("vldrb.8") HWPRUNE_WIDEN_ADD("e", "a") HWPRUNE_TAPS_OPERANDS);
  } else if (two) {
    HWPRUNE_ASM(HWPRUNE_TAPS(HWPRUNE_SOME) HWPRUNE_WIDEN_ADD("e", "a")
                    HWPRUNE_TAPS_OPERANDS, [some] "Up"(some));
  } else {
    HWPRUNE_ASM(HWPRUNE_TAP(HWPRUNE_SOME) HWPRUNE_WIDEN_ADD("e", "a")
                    HWPRUNE_TAPS_OPERANDS, [some] "Up"(some));
  }
  return w;
}

/* int8 of the accumulators of 16 channels. */
HWPRUNE_INLINE int8x16_t hwprune_narrow16(int32x4_t *acc, const int32_t *multiplier,
                                          const int32_t *shift, const int32_t any,
                                          const int32_t zero_point, const int32_t low,
                                          const int32_t high) {
  HWPRUNE_UNROLL
  for (int32_t k = 0; k < 4; ++k) {
    acc[k] = hwprune_requantize4(acc[k], multiplier + 4 * k, shift + 4 * k, any);
  }
  int16x8_t even = vqmovntq_s32(vqmovnbq_s32(vuninitializedq_s16(), acc[0]), acc[1]);
  int16x8_t odd = vqmovntq_s32(vqmovnbq_s32(vuninitializedq_s16(), acc[2]), acc[3]);
  even = vqaddq_n_s16(even, (int16_t)zero_point);
  odd = vqaddq_n_s16(odd, (int16_t)zero_point);
  int8x16_t made = vqmovntq_s16(vqmovnbq_s16(vuninitializedq_s8(), even), odd);
  if (low > -128) {
    made = vmaxq_s8(made, vdupq_n_s8((int8_t)low));
  }
  if (high < 127) {
    made = vminq_s8(made, vdupq_n_s8((int8_t)high));
  }
  return made;
}

/* A block of up to 16 channels of one position; x: its first tap. Returns the weights of the next. */
HWPRUNE_INLINE const int8_t *hwprune_block16(
    int8_t *y, const int8_t *x, const int8_t *w, const int32_t *bias, const int32_t *multiplier,
    const int32_t *shift, const int32_t down, const int32_t right, const int32_t taps,
    const int32_t kw, const int32_t n, const int32_t any, const int32_t zero_point,
    const int32_t low, const int32_t high) {
  int32x4_t acc[4];
  HWPRUNE_UNROLL
  for (int32_t k = 0; k < 4; ++k) {
    acc[k] = vldrwq_s32(bias + 4 * k);
  }
  const int32_t next = down - (kw - 1) * right;
  HWPRUNE_UNROLL
  for (int32_t t = 0; t < taps; t += 2) {
    const int8_t *const second = x + ((t + 1) % kw ? right : next);
    w = hwprune_taps16(acc, w, x, second, n, t + 1 < taps);
    x = second + ((t + 2) % kw ? right : next);
  }
  const int8x16_t made = hwprune_narrow16(acc, multiplier, shift, any, zero_point, low, high);
  if (n >= 16) {
    vstrbq_s8(y, made);
  } else {
    vstrbq_p_s8(y, made, vctp8q((uint32_t)n));
  }
  return w;
}
#endif

/* One position of a depthwise convolution, all channels: the window lies in x, taps `row` and
   `column` bytes apart, or in a copy, `copy_row` and `copy_column` apart.
   w: blocks of 16 channels, tap by tap. bias, multiplier, shift: 16 of a block in the order of
   ORDER in helium_depthwise.py. No weight is -128. */
HWPRUNE_INLINE void hwprune_depthwise(
    int8_t *y, const int8_t *x, const int8_t *copy, const int32_t inside, const int8_t *w,
    const int32_t *bias, const int32_t *multiplier, const int32_t *shift, const int32_t row,
    const int32_t column, const int32_t copy_row, const int32_t copy_column, const int32_t kh,
    const int32_t kw, const int32_t channels, const int32_t any, const int32_t zero_point,
    const int32_t low, const int32_t high) {
  const int32_t taps = kh * kw, down = inside ? row : copy_row;
  const int32_t right = inside ? column : copy_column;
  x = inside ? x : copy;
#if HWPRUNE_MVE_ASM
  const int32_t whole = channels & ~15;
  int32_t c = 0;
  for (; c < whole; c += 16) {
    w = hwprune_block16(y + c, x + c, w, bias + c, multiplier + c, shift + c, down, right, taps, kw,
                        16, any, zero_point, low, high);
  }
  if (whole < channels) {
    hwprune_block16(y + c, x + c, w, bias + c, multiplier + c, shift + c, down, right, taps, kw,
                    channels & 15, any, zero_point, low, high);
  }
#else
  (void)any;
  for (int32_t c = 0; c < channels; ++c) {
    const int32_t block = c & ~15, lane = c & 15;
    const int32_t k = block + 4 * (2 * (lane & 1) + ((lane >> 1) & 1)) + (lane >> 2);
    int32_t acc = bias[k];
    for (int32_t t = 0; t < taps; ++t) {
      acc += x[t / kw * down + t % kw * right + c] * w[block * taps + 16 * t + lane];
    }
    acc = hwprune_requantize(acc, multiplier[k], shift[k]) + zero_point;
    y[c] = (int8_t)hwprune_clamp(acc, low, high);
  }
#endif
}

/* e^x of Q5.26 numbers at or below zero, as Q0.31 (gemmlowp). */
HWPRUNE_INLINE int32_t hwprune_exp(int32_t x) {
  static const int32_t factors[7] = {1672461947, 1302514674, 790015084, 290630308,
                                     39332535,   720401,     242};
  const int32_t quarter = 1 << 24;
  const int32_t within = (x & (quarter - 1)) - quarter;
  const int32_t a = within * 32 + (1 << 28);
  const int32_t square = hwprune_doubling_high_mul(a, a);
  const int32_t cubes = hwprune_round_shift(hwprune_doubling_high_mul(square, square), 2) +
                        hwprune_doubling_high_mul(square, a);
  const int32_t tail =
      a + hwprune_round_shift(hwprune_doubling_high_mul(cubes, 715827883) + square, 1);
  int32_t result = 1895147668 + hwprune_doubling_high_mul(tail, 1895147668);
  const int32_t left = within - x;
  if (x == 0) {
    return INT32_MAX;
  }
  for (int32_t bit = 0; bit < 7; ++bit) {
    if (left & (quarter << bit)) {
      result = hwprune_doubling_high_mul(result, factors[bit]);
    }
  }
  return result;
}

HWPRUNE_INLINE int32_t hwprune_saturating_left(int32_t x, int32_t left) {
  const int64_t wide = (int64_t)x * (1 << left);
  return wide > INT32_MAX ? INT32_MAX : wide < INT32_MIN ? INT32_MIN : (int32_t)wide;
}

/* 1 / (1 + x) of Q0.31 numbers in [0, 1], as Q0.31: three Newton-Raphson steps (gemmlowp). */
HWPRUNE_INLINE int32_t hwprune_one_over_one_plus(int32_t x) {
  const int32_t half = (int32_t)(((int64_t)x + INT32_MAX + 1) >> 1);
  int32_t guess = 1515870810 + hwprune_doubling_high_mul(half, -1010580540);
  for (int32_t i = 0; i < 3; ++i) {
    const int32_t rest = (1 << 29) - hwprune_doubling_high_mul(half, guess);
    guess += hwprune_saturating_left(hwprune_doubling_high_mul(guess, rest), 2);
  }
  return hwprune_saturating_left(guess, 1);
}

/* Softmax over n values (TensorFlow Lite, int8): differences below diff_min count as zero. */
HWPRUNE_INLINE void hwprune_softmax(
    int8_t *y, const int8_t *x, int32_t n, int32_t multiplier, int32_t shift, int32_t diff_min) {
  int32_t top = x[0];
  for (int32_t i = 1; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
  }
  int32_t total = 0;
  for (int32_t i = 0; i < n; ++i) {
    const int32_t below = x[i] - top;
    if (below >= diff_min) {
      const int32_t scaled = hwprune_doubling_high_mul(below * (1 << shift), multiplier);
      total += hwprune_round_shift(hwprune_exp(scaled), 12);
    }
  }
  int32_t headroom = 0;
  while (!(((uint32_t)total << headroom) & 0x80000000u)) {
    ++headroom;
  }
  const int32_t over = (int32_t)(((uint32_t)total << headroom) - 0x80000000u);
  const int32_t scale = hwprune_one_over_one_plus(over);
  for (int32_t i = 0; i < n; ++i) {
    const int32_t below = x[i] - top;
    int32_t share = -128;
    if (below >= diff_min) {
      const int32_t scaled = hwprune_doubling_high_mul(below * (1 << shift), multiplier);
      const int32_t product = hwprune_doubling_high_mul(scale, hwprune_exp(scaled));
      share += hwprune_round_shift(product, 35 - headroom);
    }
    y[i] = (int8_t)hwprune_clamp(share, -128, 127);
  }
}

#endif
