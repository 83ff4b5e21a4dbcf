// exp2, GELU and tanh: one polynomial each, so that every ISA with a fused multiply-add gives equal bits.
//
// They take several vectors at once (Wide<N>): the chains of dependent operations are long, and N of them in lockstep
// keep the arithmetic units busy where a scheduler window holds too few of one after another.
#pragma once

namespace edgebert {
namespace EB_ISA {

template <int N>
struct Wide {
  F32x16 v[N];
};

// A Wide must stay in registers: an outlined call would pass it through memory.
#define EB_INLINE inline __attribute__((always_inline))
#define EB_EACH _Pragma("GCC unroll 16") for (int i = 0; i < N; ++i)
template <int N>
EB_INLINE Wide<N> add(Wide<N> a, F32x16 b) {
  EB_EACH a.v[i] = add(a.v[i], b);
  return a;
}
template <int N>
EB_INLINE Wide<N> sub(Wide<N> a, const Wide<N>& b) {
  EB_EACH a.v[i] = sub(a.v[i], b.v[i]);
  return a;
}
template <int N>
EB_INLINE Wide<N> mul(Wide<N> a, F32x16 b) {
  EB_EACH a.v[i] = mul(a.v[i], b);
  return a;
}
template <int N>
EB_INLINE Wide<N> mul(Wide<N> a, const Wide<N>& b) {
  EB_EACH a.v[i] = mul(a.v[i], b.v[i]);
  return a;
}
template <int N>
EB_INLINE Wide<N> div(F32x16 a, Wide<N> b) {
  EB_EACH b.v[i] = div(a, b.v[i]);
  return b;
}
template <int N>
EB_INLINE Wide<N> min(Wide<N> a, F32x16 b) {
  EB_EACH a.v[i] = min(a.v[i], b);
  return a;
}
template <int N>
EB_INLINE Wide<N> max(Wide<N> a, F32x16 b) {
  EB_EACH a.v[i] = max(a.v[i], b);
  return a;
}
template <int N>
EB_INLINE Wide<N> abs(Wide<N> a) {
  EB_EACH a.v[i] = abs(a.v[i]);
  return a;
}
template <int N>
EB_INLINE Wide<N> round(Wide<N> a) {
  EB_EACH a.v[i] = round(a.v[i]);
  return a;
}
template <int N>
EB_INLINE Wide<N> fma(Wide<N> a, const Wide<N>& b, F32x16 c) {
  EB_EACH a.v[i] = fma(a.v[i], b.v[i], c);
  return a;
}
template <int N>
EB_INLINE Wide<N> fma(Wide<N> a, F32x16 b, F32x16 c) {
  EB_EACH a.v[i] = fma(a.v[i], b, c);
  return a;
}
template <int N>
EB_INLINE Wide<N> fma(Wide<N> a, F32x16 b, const Wide<N>& c) {
  EB_EACH a.v[i] = fma(a.v[i], b, c.v[i]);
  return a;
}
template <int N>
EB_INLINE Wide<N> fnma(Wide<N> a, const Wide<N>& b, const Wide<N>& c) {
  EB_EACH a.v[i] = fnma(a.v[i], b.v[i], c.v[i]);
  return a;
}
template <int N>
EB_INLINE Wide<N> scale_exp2(Wide<N> a, const Wide<N>& n) {
  EB_EACH a.v[i] = scale_exp2(a.v[i], n.v[i]);
  return a;
}
#undef EB_EACH

// 2**t for t <= 126; below -126 it is 2**-126. Relative error 8e-8 (minimax polynomial of degree 5 on [-0.5, 0.5]).
template <int N>
EB_INLINE Wide<N> exp2(Wide<N> t) {
  t = max(t, set1(-126.0f));
  const Wide<N> n = round(t);
  const Wide<N> r = sub(t, n);
  Wide<N> p = fma(r, set1(1.3276492e-3f), set1(9.6755417e-3f));
  p = fma(p, r, set1(5.5507132e-2f));
  p = fma(p, r, set1(2.4022120e-1f));
  p = fma(p, r, set1(6.9314697e-1f));
  p = fma(p, r, set1(1.0000001f));
  return scale_exp2(p, n);
}

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), and Phi(-a) = 2**-P(a) with P a minimax polynomial of degree 6 on [0, 6]
// for the absolute error of the product: 5e-8. Beyond 6 the product is taken as at 6, less than 1e-8.
template <int N>
EB_INLINE Wide<N> gelu_erf(Wide<N> x) {
  const Wide<N> a = min(abs(x), set1(6.0f));
  Wide<N> p = fma(a, set1(3.3093243e-5f), set1(-7.6922356e-4f));  // -P, as exp2 takes it
  p = fma(p, a, set1(8.0807296e-3f));
  p = fma(p, a, set1(-5.3412125e-2f));
  p = fma(p, a, set1(-4.5877096e-1f));
  p = fma(p, a, set1(-1.1512017f));
  p = fma(p, a, set1(-9.9999306e-1f));
  return fnma(a, exp2(p), max(x, set1(0.0f)));
}

// 1 / (1 + exp(-x))
template <int N>
EB_INLINE Wide<N> sigmoid(Wide<N> x) {
  const Wide<N> t = min(mul(x, set1(-1.44269504f)), set1(126.0f));
  return div(set1(1.0f), add(exp2(t), set1(1.0f)));
}

// 0.5 x (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x**3)
template <int N>
EB_INLINE Wide<N> gelu_tanh(Wide<N> x) {
  const Wide<N> inner = fma(mul(mul(x, x), x), set1(0.044715f), x);
  return mul(x, sigmoid(mul(inner, set1(1.5957691f))));
}

// tanh(x) = 2 sigmoid(2 x) - 1
template <int N>
EB_INLINE Wide<N> tanh(Wide<N> x) {
  return fma(sigmoid(mul(x, set1(2.0f))), set1(2.0f), set1(-1.0f));
}

template <Epilogue kEpilogue, int N>
EB_INLINE Wide<N> activate(Wide<N> x) {
  if constexpr (kEpilogue == Epilogue::kGeluErf) return gelu_erf(x);
  if constexpr (kEpilogue == Epilogue::kGeluTanh) return gelu_tanh(x);
  if constexpr (kEpilogue == Epilogue::kRelu) return max(x, set1(0.0f));
  if constexpr (kEpilogue == Epilogue::kTanh) return tanh(x);
  if constexpr (kEpilogue == Epilogue::kSilu) return mul(x, sigmoid(x));
  return x;
}

// Calls function<epilogue>(...), where the epilogue is known only when it runs.
#define EB_BY_EPILOGUE(epilogue, function, ...)   \
  switch (epilogue) {                             \
    case Epilogue::kBias:                         \
      function<Epilogue::kBias>(__VA_ARGS__);     \
      break;                                      \
    case Epilogue::kGeluErf:                      \
      function<Epilogue::kGeluErf>(__VA_ARGS__);  \
      break;                                      \
    case Epilogue::kGeluTanh:                     \
      function<Epilogue::kGeluTanh>(__VA_ARGS__); \
      break;                                      \
    case Epilogue::kRelu:                         \
      function<Epilogue::kRelu>(__VA_ARGS__);     \
      break;                                      \
    case Epilogue::kTanh:                         \
      function<Epilogue::kTanh>(__VA_ARGS__);     \
      break;                                      \
    case Epilogue::kSilu:                         \
      function<Epilogue::kSilu>(__VA_ARGS__);     \
      break;                                      \
  }

}  // namespace EB_ISA
}  // namespace edgebert
