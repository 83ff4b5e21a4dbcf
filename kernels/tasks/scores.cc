#include "tasks/scores.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace edgebert::tasks {

double exponential(double x) {
  if (x != x) return x;
  x = x < -700.0 ? -700.0 : x > 700.0 ? 700.0 : x;
  const double n = std::nearbyint(x * 1.4426950408889634);  // half to even
  const double r = (x - n * 0.6931471805599453) * 0.125;
  double p = r * (1.0 / 120.0) + 1.0 / 24.0;
  for (const double term : {1.0 / 6.0, 0.5, 1.0, 1.0}) p = p * r + term;
  for (int i = 0; i < 3; ++i) p = p * p;
  const int64_t bits = (static_cast<int64_t>(n) + 1023) << 52;
  double power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

float sigmoid(float x) { return static_cast<float>(1.0 / (1.0 + exponential(-static_cast<double>(x)))); }

float hyperbolic_tangent(float value) {
  const double x = std::fabs(static_cast<double>(value));
  double size;
  if (x < 0.03125) {
    const double square = x * x;
    size = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)));
  } else {
    const double power = exponential(-2.0 * x);
    size = (1.0 - power) / (1.0 + power);
  }
  return static_cast<float>(std::copysign(size, static_cast<double>(value)));
}

void softmax(const float* logits, size_t count, float* scores, std::vector<double>* powers) {
  powers->resize(count);
  const double greatest = logits[find_greatest(logits, count)];
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    const double power = exponential(static_cast<double>(logits[i]) - greatest);
    (*powers)[i] = power;
    sum = i == 0 ? power : sum + power;
  }
  for (size_t i = 0; i < count; ++i) scores[i] = static_cast<float>((*powers)[i] / sum);
}

void normalize(const float* row, size_t width, float* out) {
  double sum = 0;
  for (size_t i = 0; i < width; ++i) sum += static_cast<double>(row[i]) * static_cast<double>(row[i]);
  const double length = std::sqrt(sum);
  const double divisor = length < 1e-12 ? 1e-12 : length;  // NaN stays
  for (size_t i = 0; i < width; ++i) out[i] = static_cast<float>(static_cast<double>(row[i]) / divisor);
}

size_t find_greatest(const float* values, size_t count) {
  size_t best = 0;
  for (size_t i = 1; i < count && values[best] == values[best]; ++i) {
    if (!(values[i] <= values[best])) best = i;
  }
  return best;
}

}  // namespace edgebert::tasks
