// exp2, GELU and tanh over F32x16: one polynomial each, so that every ISA with a fused multiply-add gives equal bits.
#pragma once

namespace edgebert {
namespace EB_ISA {

// 2**t for t <= 126; below -126 it is 2**-126. Relative error 8e-8 (minimax polynomial of degree 5 on [-0.5, 0.5]).
inline F32x16 exp2(F32x16 t) {
  t = max(t, set1(-126.0f));
  const F32x16 n = round(t);
  const F32x16 r = sub(t, n);
  F32x16 p = set1(1.3276492e-3f);
  p = fma(p, r, set1(9.6755417e-3f));
  p = fma(p, r, set1(5.5507132e-2f));
  p = fma(p, r, set1(2.4022120e-1f));
  p = fma(p, r, set1(6.9314697e-1f));
  p = fma(p, r, set1(1.0000001f));
  return scale_exp2(p, n);
}

// x * Phi(x) = max(x, 0) - |x| * Phi(-|x|), and Phi(-a) = 2**-P(a) with P a minimax polynomial of degree 6 on [0, 6]
// for the absolute error of the product: 5e-8. Beyond 6 the product is taken as at 6, less than 1e-8.
inline F32x16 gelu_erf(F32x16 x) {
  const F32x16 a = min(abs(x), set1(6.0f));
  F32x16 p = set1(3.3093243e-5f);  // -P, so that exp2 takes it as it is
  p = fma(p, a, set1(-7.6922356e-4f));
  p = fma(p, a, set1(8.0807296e-3f));
  p = fma(p, a, set1(-5.3412125e-2f));
  p = fma(p, a, set1(-4.5877096e-1f));
  p = fma(p, a, set1(-1.1512017f));
  p = fma(p, a, set1(-9.9999306e-1f));
  return fnma(a, exp2(p), max(x, set1(0.0f)));
}

// 1 / (1 + exp(-x))
inline F32x16 sigmoid(F32x16 x) {
  const F32x16 t = min(mul(x, set1(-1.44269504f)), set1(126.0f));
  return div(set1(1.0f), add(set1(1.0f), exp2(t)));
}

// 0.5 x (1 + tanh(u)) = x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x**3)
inline F32x16 gelu_tanh(F32x16 x) {
  const F32x16 inner = fma(mul(mul(x, x), x), set1(0.044715f), x);
  return mul(x, sigmoid(mul(inner, set1(1.5957691f))));
}

// tanh(x) = 2 sigmoid(2 x) - 1
inline F32x16 tanh(F32x16 x) { return fma(set1(2.0f), sigmoid(add(x, x)), set1(-1.0f)); }

template <Epilogue kEpilogue>
inline F32x16 activate(F32x16 x) {
  if constexpr (kEpilogue == Epilogue::kGeluErf) return gelu_erf(x);
  if constexpr (kEpilogue == Epilogue::kGeluTanh) return gelu_tanh(x);
  if constexpr (kEpilogue == Epilogue::kRelu) return max(x, set1(0.0f));
  if constexpr (kEpilogue == Epilogue::kTanh) return tanh(x);
  return x;
}

}  // namespace EB_ISA
}  // namespace edgebert
