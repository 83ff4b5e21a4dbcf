// From logits to scores, with the bits of edgebert/tasks/base.py: single operations on float64 in one order.
#pragma once

#include <cstddef>
#include <vector>

namespace edgebert::tasks {

double exponential(double x);
float sigmoid(float x);
float hyperbolic_tangent(float x);

// exp(x) / sum of exp(x) of `count` logits, at least one. `powers` is memory.
void softmax(const float* logits, size_t count, float* scores, std::vector<double>* powers);

// A row scaled to length 1: x / max(|x|, 1e-12). The two may be one.
void normalize(const float* row, size_t width, float* out);

// The first of the greatest. NaN counts as the greatest, as in NumPy.
size_t find_greatest(const float* values, size_t count);

// Whether a value comes before another in descending order: NaN comes last.
template <class T>
bool is_before(T a, T b) {
  return a > b || (b != b && a == a);
}

}  // namespace edgebert::tasks
