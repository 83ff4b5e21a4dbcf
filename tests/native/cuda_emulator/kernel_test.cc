// Every CUDA kernel, run by the emulator, against plain reference code written here (f64 where floats are summed), on
// awkward shapes and values; and against itself, bit for bit: a text alone and in a batch, every tile, threads in the
// opposite order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <emulator.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../check.h"
#include "cuda/kernels.h"

using namespace edgebert;
using namespace edgebert::cuda;

namespace {

using Values = std::vector<float>;
std::mt19937 rng(7);

Values random_values(size_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  Values values(count);
  for (float& x : values) x = normal(rng);
  return values;
}

// Rows that break careless code: zeros, one huge value, all equal, all negative, tiny.
Values awkward_values(int rows, int width) {
  Values values = random_values(static_cast<size_t>(rows) * width);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < width; ++c) {
      float& x = values[static_cast<size_t>(r) * width + c];
      if (r % 6 == 1) x = 0.0f;
      if (r % 6 == 2 && c == width / 2) x = 3.0e4f;
      if (r % 6 == 3) x = 0.75f;
      if (r % 6 == 4) x = -std::fabs(x) - 1.0f;
      if (r % 6 == 5) x *= 1e-6f;
    }
  return values;
}

// Device memory of exactly this size, NaN (or -1) until written.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count) {
    void* data = nullptr;
    CHECK(cudaMalloc(&data, count * sizeof(T)) == cudaSuccess);
    data_.reset(static_cast<T*>(data), [](T* p) { cudaFree(p); });
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    if (!values.empty()) std::memcpy(data(), values.data(), values.size() * sizeof(T));
  }
  T* data() const { return data_.get(); }
  std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }

 private:
  size_t count_;
  std::shared_ptr<T> data_;
};

float load_value(const void* data, DType dtype, size_t at) {
  if (dtype == DType::kF16) return __half2float(static_cast<const __half*>(data)[at]);
  if (dtype == DType::kBF16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
  return static_cast<const float*>(data)[at];
}
void store_value(void* data, DType dtype, size_t at, float x) {
  if (dtype == DType::kF16)
    static_cast<__half*>(data)[at] = __float2half_rn(x);
  else if (dtype == DType::kBF16)
    static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(x);
  else
    static_cast<float*>(data)[at] = x;
}
size_t size_of(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// Rows on the device, whose padding stays NaN; the last row has none, so that a step past it is seen.
struct Matrix {
  int rows, width;
  Rows view;
  Buffer<unsigned char> memory;

  Matrix(int rows, int width, DType dtype)
      : rows(rows),
        width(width),
        view{nullptr, dtype, row_stride(width)},
        memory((static_cast<size_t>(rows - 1) * view.stride + width) * size_of(dtype)) {
    view.data = memory.data();
  }
  Matrix(int rows, int width, DType dtype, const Values& values) : Matrix(rows, width, dtype) {
    for (size_t i = 0; i < values.size(); ++i)
      store_value(view.data, dtype, i / width * view.stride + i % width, values[i]);
  }
  float at(int row, int column) const {
    return load_value(view.data, view.dtype, static_cast<size_t>(row) * view.stride + column);
  }
  Values values() const {
    Values values;
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < width; ++c) values.push_back(at(r, c));
    return values;
  }
  Rows from_row(int row) const {
    return {memory.data() + static_cast<size_t>(row) * view.stride * size_of(view.dtype), view.dtype, view.stride};
  }
};

struct Codes {
  int rows, width;
  Buffer<int8_t> codes;
  Buffer<float> a_scale;
  Buffer<int32_t> neg_zero;
  CodeRows view;
  Codes(int rows, int width)
      : rows(rows),
        width(width),
        codes(static_cast<size_t>(rows - 1) * row_stride(width) + width),
        a_scale(rows),
        neg_zero(rows),
        view{codes.data(), row_stride(width), a_scale.data(), neg_zero.data()} {}
};

bool same_bits(const Values& a, const Values& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}
// |a - b| <= limit * (1 + |b|); NaN fails.
void check_close(const Values& a, const std::vector<double>& b, double limit) {
  CHECK(a.size() == b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::fabs(a[i] - b[i]) <= limit * (1.0 + std::fabs(b[i]))) continue;
    std::fprintf(stderr, "value %zu of %zu: expected %.9g, got %.9g\n", i, a.size(), b[i], a[i]);
    CHECK(false);
  }
}
// The error of rounding to a dtype, with room for sums in f32.
double rounding(DType dtype) { return dtype == DType::kF16 ? 1e-3 : dtype == DType::kBF16 ? 8e-3 : 2e-5; }

// Runs it twice, the second time with threads in the opposite order: `result` must give the same bits.
template <class Run, class Result>
Values run_twice(Run run, Result result) {
  CHECK(run() == cudaSuccess);
  const Values first = result();
  emulator::set_reversed(true);
  CHECK(run() == cudaSuccess);
  emulator::set_reversed(false);
  CHECK(same_bits(first, result()));
  return first;
}

double reference_activate(double x, Activation activation) {
  switch (activation) {
    case Activation::kGeluErf:
      return 0.5 * x * (1.0 + std::erf(x * std::sqrt(0.5)));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kRelu:
      return std::max(x, 0.0);
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    default:
      return x;
  }
}

// ---- Rows
// ------------------------------------------------------------------------------------------------------------

std::vector<double> reference_layernorm(const std::vector<double>& x, int width, const Values& weight,
                                        const Values& bias, double eps) {
  std::vector<double> out(x.size());
  for (size_t first = 0; first < x.size(); first += width) {
    double mean = 0, variance = 0;
    for (int c = 0; c < width; ++c) mean += x[first + c] / width;
    for (int c = 0; c < width; ++c) variance += (x[first + c] - mean) * (x[first + c] - mean) / width;
    for (int c = 0; c < width; ++c)
      out[first + c] = (x[first + c] - mean) / std::sqrt(variance + eps) * weight[c] + bias[c];
  }
  return out;
}

// quant.quantize_rows, one f32 operation after the other, of f32 values.
void check_codes(const Values& x, const Codes& got, const float* inv_smooth) {
  for (int r = 0; r < got.rows; ++r) {
    Values row(x.begin() + static_cast<std::ptrdiff_t>(r) * got.width,
               x.begin() + static_cast<std::ptrdiff_t>(r + 1) * got.width);
    for (int c = 0; inv_smooth && c < got.width; ++c) row[c] = row[c] * inv_smooth[c];
    const float lo = std::min(*std::min_element(row.begin(), row.end()), -1e-12f);
    const float hi = std::max(*std::max_element(row.begin(), row.end()), 0.0f), span = hi - lo;
    const float scale = span / 255.0f, inv = 255.0f / span, product = lo * inv, zn = std::rint(product);
    CHECK(got.a_scale.data()[r] == scale);
    CHECK(got.neg_zero.data()[r] == static_cast<int32_t>(zn) + 128);
    for (int c = 0; c < got.width; ++c) {
      const float scaled = row[c] * inv, q = std::min(std::max(std::rint(scaled - zn), 0.0f), 255.0f);
      CHECK(got.codes.data()[static_cast<size_t>(r) * got.view.stride + c] == static_cast<int>(q) - 128);
    }
  }
}

void test_embed_layernorm(int tokens, int width, DType table, bool has_types, DType out_dtype) {
  constexpr int kVocabulary = 11, kPositions = 7, kTypes = 2;
  const Values weight = random_values(width), bias = random_values(width);
  const Buffer<float> device_weight(weight), device_bias(bias);
  std::vector<std::shared_ptr<void>> keep;
  const auto make_table = [&](int rows, Values& values) -> Table {
    values = random_values(static_cast<size_t>(rows) * width);
    if (table != DType::kS8) {
      const Buffer<unsigned char> data(values.size() * size_of(table));
      for (size_t i = 0; i < values.size(); ++i) {
        store_value(data.data(), table, i, values[i]);
        values[i] = load_value(data.data(), table, i);
      }
      keep.push_back(std::make_shared<Buffer<unsigned char>>(data));
      return {data.data(), table, nullptr};
    }
    const Buffer<int8_t> codes(values.size());
    const Buffer<float> scale(rows);
    for (int r = 0; r < rows; ++r) {
      scale.data()[r] = 0.01f * static_cast<float>(r + 1);
      for (int c = 0; c < width; ++c) {
        const size_t i = static_cast<size_t>(r) * width + c;
        codes.data()[i] = static_cast<int8_t>(static_cast<int>(i * 37 % 255) - 127);
        values[i] = static_cast<float>(codes.data()[i]) * scale.data()[r];
      }
    }
    keep.push_back(std::make_shared<Buffer<int8_t>>(codes));
    keep.push_back(std::make_shared<Buffer<float>>(scale));
    return {codes.data(), DType::kS8, scale.data()};
  };
  Values words, positions, types;
  const Table word = make_table(kVocabulary, words), position = make_table(kPositions, positions);
  const Table token_type = has_types ? make_table(kTypes, types) : Table{};
  std::vector<int32_t> ids(tokens), type_ids(tokens), position_ids(tokens);
  std::vector<double> sum;
  for (int t = 0; t < tokens; ++t) {
    ids[t] = t * 5 % kVocabulary, type_ids[t] = t % kTypes, position_ids[t] = t % kPositions;
    for (int c = 0; c < width; ++c)
      sum.push_back(static_cast<double>(words[ids[t] * width + c]) + positions[position_ids[t] * width + c] +
                    (has_types ? types[type_ids[t] * width + c] : 0.0f));
  }
  const Buffer<int32_t> device_ids(ids), device_types(type_ids), device_positions(position_ids);
  const Matrix out(tokens, width, out_dtype);
  const LayerNorm norm{device_weight.data(), device_bias.data(), width, 1e-12f};
  const EmbedLayerNormArgs args{
      word,   position, token_type, norm, device_ids.data(), device_types.data(), device_positions.data(),
      tokens, out.view};
  const Values got = run_twice([&] { return embed_layernorm(args, nullptr); }, [&] { return out.values(); });
  check_close(got, reference_layernorm(sum, width, weight, bias, 1e-12), rounding(out_dtype));
}

void test_add_layernorm(int tokens, int width, DType x_dtype, DType residual_dtype, bool has_residual, bool quantize,
                        bool is_smoothed) {
  const Values weight = random_values(width), bias = random_values(width), inv_smooth = random_values(width);
  const Buffer<float> device_weight(weight), device_bias(bias), device_smooth(inv_smooth);
  const Matrix x(tokens, width, x_dtype, awkward_values(tokens, width));
  const Matrix residual(tokens, width, residual_dtype, random_values(static_cast<size_t>(tokens) * width));
  std::vector<double> sum;
  for (int t = 0; t < tokens; ++t)
    for (int c = 0; c < width; ++c)
      sum.push_back(static_cast<double>(x.at(t, c)) + (has_residual ? residual.at(t, c) : 0.0f));
  const Matrix out(tokens, width, DType::kF32);
  const Codes codes(tokens, width);
  AddLayerNormArgs args{x.view,
                        has_residual ? residual.view : Rows{},
                        {device_weight.data(), device_bias.data(), width, 1e-5f},
                        tokens,
                        out.view,
                        quantize ? codes.view : CodeRows{},
                        is_smoothed ? device_smooth.data() : nullptr};
  const Values got = run_twice([&] { return add_layernorm(args, nullptr); }, [&] { return out.values(); });
  check_close(got, reference_layernorm(sum, width, weight, bias, 1e-5), 1e-4);
  if (quantize) check_codes(got, codes, is_smoothed ? inv_smooth.data() : nullptr);

  // One row alone, and in place: the same bits.
  const Matrix one(1, width, DType::kF32);
  const int row = tokens - 1;
  args.x = x.from_row(row);
  if (has_residual) args.residual = residual.from_row(row);
  args.tokens = 1;
  args.out = one.view;
  CHECK(add_layernorm(args, nullptr) == cudaSuccess);
  CHECK(same_bits(one.values(), Values(got.end() - width, got.end())));
  if (has_residual && residual_dtype == DType::kF32) {
    args.out = args.residual;
    CHECK(add_layernorm(args, nullptr) == cudaSuccess);
    for (int c = 0; c < width; ++c) CHECK(residual.at(row, c) == one.at(0, c));
  }
}

void test_quantize_rows(const Values& values, int width, DType dtype, bool is_smoothed) {
  const int rows = static_cast<int>(values.size()) / width;
  const Matrix x(rows, width, dtype, values);
  const Values inv_smooth = random_values(width);
  const Buffer<float> device_smooth(inv_smooth);
  const Codes codes(rows, width);
  const float* smooth = is_smoothed ? device_smooth.data() : nullptr;
  CHECK(quantize_rows({x.view, rows, width, smooth, codes.view}, nullptr) == cudaSuccess);
  check_codes(x.values(), codes, smooth);
}

// What the sum of a sequence's values weighs each with.
double pool_weight(Pooling pooling, int t, int count) {
  switch (pooling) {
    case Pooling::kMean:
      return 1.0 / count;
    case Pooling::kCls:
      return t == 0 ? 1.0 : 0.0;
    case Pooling::kMeanSqrtLen:
      return 1.0 / std::sqrt(count);
    case Pooling::kWeightedMean:
      return (t + 1) / (count * (count + 1) / 2.0);
    case Pooling::kLast:
      return t == count - 1 ? 1.0 : 0.0;
    default:
      return 1.0;
  }
}

void test_pool(int width, DType dtype) {
  const std::vector<int32_t> cu_seqlens{0, 1, 3, 66, 83};
  const int sequences = static_cast<int>(cu_seqlens.size()) - 1;
  const Matrix x(cu_seqlens.back(), width, dtype, random_values(static_cast<size_t>(cu_seqlens.back()) * width));
  const Buffer<int32_t> device_seqlens(cu_seqlens);
  const Pooling poolings[] = {Pooling::kMean,         Pooling::kCls,  Pooling::kMax, Pooling::kMeanSqrtLen,
                              Pooling::kWeightedMean, Pooling::kLast, Pooling::kSum};
  for (const Pooling pooling : poolings) {
    const Matrix out(sequences, 2 * width, DType::kF32);  // the poolings of one row lie side by side
    std::vector<double> expected, unit;
    for (int s = 0; s < sequences; ++s) {
      const int first = cu_seqlens[s], count = cu_seqlens[s + 1] - first;
      double squares = 0;
      for (int c = 0; c < 2 * width; ++c) {
        double value = pooling == Pooling::kMax ? x.at(first, c % width) : 0;
        for (int t = 0; t < count; ++t) {
          const double next = x.at(first + t, c % width);
          value = pooling == Pooling::kMax ? std::max(value, next) : value + pool_weight(pooling, t, count) * next;
        }
        expected.push_back(value);
        squares += value * value;
      }
      for (int c = 0; c < 2 * width; ++c)
        unit.push_back(expected[expected.size() - 2 * width + c] / std::sqrt(squares));
    }
    const auto run = [&] {
      const cudaError_t error = pool({x.view, width, device_seqlens.data(), sequences, pooling, 0, out.view}, nullptr);
      return error == cudaSuccess
                 ? pool({x.view, width, device_seqlens.data(), sequences, pooling, width, out.view}, nullptr)
                 : error;
    };
    check_close(run_twice(run, [&] { return out.values(); }), expected, 1e-5);
    CHECK(normalize_rows(out.view, sequences, 2 * width, nullptr) == cudaSuccess);
    check_close(out.values(), unit, 1e-5);
    std::vector<double> logarithms;
    for (const double value : unit) logarithms.push_back(std::log1p(std::max(value, 0.0)));
    CHECK(log1p_relu_rows(out.view, sequences, 2 * width, nullptr) == cudaSuccess);
    check_close(out.values(), logarithms, 1e-5);
  }
  const Matrix zeros(1, width, DType::kF32, Values(width, 0.0f));
  CHECK(normalize_rows(zeros.view, 1, width, nullptr) == cudaSuccess);
  CHECK(same_bits(zeros.values(), Values(width, 0.0f)));
}

void test_gather_rows(int width) {
  const Matrix x(9, width, DType::kF16, random_values(static_cast<size_t>(9) * width));
  const std::vector<int32_t> index{0, 3, 8};
  const Buffer<int32_t> device_index(index);
  const Buffer<float> packed(index.size() * width);
  CHECK(gather_rows(x.view, device_index.data(), 3, width, {packed.data(), DType::kF32, width}, nullptr) ==
        cudaSuccess);
  for (int i = 0; i < 3; ++i)
    for (int c = 0; c < width; ++c) CHECK(packed.data()[i * width + c] == x.at(index[i], c));
  const Matrix copy(9, width, DType::kF16);
  CHECK(gather_rows(x.view, nullptr, 9, width, copy.view, nullptr) == cudaSuccess);
  CHECK(same_bits(copy.values(), x.values()));
}

// ---- Linear
// ----------------------------------------------------------------------------------------------------------

// Numbers of multiprocessors that make each tile be chosen in turn for 65 to 128 rows and outputs.
constexpr int kEachTile[] = {1, 4, 1 << 20};

void test_linear_f16(int rows, int inputs, int outputs, DType dtype, Activation activation, DType out_dtype,
                     bool has_residual) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(inputs));
  const Matrix x(rows, inputs, dtype, random_values(static_cast<size_t>(rows) * inputs));
  const Matrix weight(outputs, inputs, dtype, random_values(static_cast<size_t>(outputs) * inputs, scale));
  const Matrix residual(rows, outputs, DType::kF16, random_values(static_cast<size_t>(rows) * outputs));
  const Values bias = random_values(outputs);
  const Buffer<float> device_bias(bias);
  std::vector<double> expected;
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < outputs; ++n) {
      double sum = bias[n];
      for (int k = 0; k < inputs; ++k) sum += static_cast<double>(x.at(r, k)) * weight.at(n, k);
      expected.push_back(reference_activate(sum, activation) + (has_residual ? residual.at(r, n) : 0.0f));
    }
  const Matrix out(rows, outputs, out_dtype);
  LinearF16Args args{x.view,
                     weight.view.data,
                     device_bias.data(),
                     rows,
                     inputs,
                     outputs,
                     activation,
                     has_residual ? residual.view : Rows{},
                     out.view,
                     0};
  Values first;
  for (const int multiprocessors : kEachTile) {
    args.num_multiprocessors = multiprocessors;
    const Values got = run_twice([&] { return linear_f16(args, nullptr); }, [&] { return out.values(); });
    if (first.empty()) first = got;
    CHECK(same_bits(got, first));
  }
  check_close(first, expected, rounding(out_dtype));
  const Matrix one(1, outputs, out_dtype);
  args.x = x.from_row(rows - 1);
  if (has_residual) args.residual = residual.from_row(rows - 1);
  args.rows = 1;
  args.out = one.view;
  CHECK(linear_f16(args, nullptr) == cudaSuccess);
  CHECK(same_bits(one.values(), Values(first.end() - outputs, first.end())));
}

void test_linear_s8(int rows, int inputs, int outputs, Activation activation, bool is_extreme, bool has_residual) {
  Values x_values = awkward_values(rows, inputs);
  if (is_extreme)
    for (size_t i = 0; i < x_values.size(); ++i) x_values[i] = i % 2 ? 1.0f : 0.0f;  // codes 255 and 0
  const Matrix x(rows, inputs, DType::kF32, x_values);
  const Codes codes(rows, inputs);
  CHECK(quantize_rows({x.view, rows, inputs, nullptr, codes.view}, nullptr) == cudaSuccess);
  const int stride = row_stride(inputs);
  const Buffer<int8_t> weight(static_cast<size_t>(outputs - 1) * stride + inputs);
  const Buffer<int32_t> colsum(outputs);
  std::uniform_int_distribution<int> code(-127, 127);
  for (int n = 0; n < outputs; ++n) {
    colsum.data()[n] = 0;
    for (int k = 0; k < inputs; ++k) {
      const int w = is_extreme ? (n % 2 ? 127 : -127) : code(rng);
      weight.data()[static_cast<size_t>(n) * stride + k] = static_cast<int8_t>(w);
      colsum.data()[n] += w;
    }
  }
  Values w_scale = random_values(outputs, 0.01f), bias = random_values(outputs);
  for (float& scale : w_scale) scale = std::fabs(scale) + 1e-3f;
  const Buffer<float> device_scale(w_scale), device_bias(bias);
  const Matrix residual(rows, outputs, DType::kF32, random_values(static_cast<size_t>(rows) * outputs));
  Values exact;
  std::vector<double> expected;
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < outputs; ++n) {
      const int32_t zn = codes.neg_zero.data()[r] - 128;
      int64_t acc = static_cast<int64_t>(zn) * colsum.data()[n];
      for (int k = 0; k < inputs; ++k)
        acc += (codes.codes.data()[static_cast<size_t>(r) * stride + k] + 128) *
               static_cast<int>(weight.data()[static_cast<size_t>(n) * stride + k]);
      const float scaled = static_cast<float>(acc) * w_scale[n], dequantized = scaled * codes.a_scale.data()[r];
      const float y = dequantized + bias[n];
      exact.push_back(y);
      expected.push_back(reference_activate(y, activation) + (has_residual ? residual.at(r, n) : 0.0f));
    }
  const Matrix out(rows, outputs, DType::kF32);
  LinearS8Args args{codes.view,
                    weight.data(),
                    device_scale.data(),
                    colsum.data(),
                    device_bias.data(),
                    rows,
                    inputs,
                    outputs,
                    activation,
                    has_residual ? residual.view : Rows{},
                    out.view,
                    0};
  for (const int multiprocessors : kEachTile) {
    args.num_multiprocessors = multiprocessors;
    const Values got = run_twice([&] { return linear_s8(args, nullptr); }, [&] { return out.values(); });
    if (activation == Activation::kIdentity && !has_residual) CHECK(same_bits(got, exact));
    check_close(got, expected, 2e-6);
  }
}

void test_linear_f32(int rows, int inputs, int outputs, DType x_dtype, Activation activation) {
  const Matrix x(rows, inputs, x_dtype, random_values(static_cast<size_t>(rows) * inputs));
  const Values weight = random_values(static_cast<size_t>(outputs) * inputs, 0.1f), bias = random_values(outputs);
  const Buffer<float> device_weight(weight), device_bias(bias);
  std::vector<double> expected;
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < outputs; ++n) {
      double sum = bias[n];
      for (int k = 0; k < inputs; ++k) sum += static_cast<double>(x.at(r, k)) * weight[n * inputs + k];
      expected.push_back(reference_activate(sum, activation));
    }
  const Matrix out(rows, outputs, DType::kF32);
  const LinearF32Args args{x.view,  device_weight.data(), device_bias.data(), rows, inputs, outputs, activation,
                           out.view};
  check_close(run_twice([&] { return linear_f32(args, nullptr); }, [&] { return out.values(); }), expected, 1e-5);
}

// ---- Attention
// -------------------------------------------------------------------------------------------------------

void test_attention(const std::vector<int>& lengths, int num_heads, int head_dim, DType dtype, bool is_biased = false) {
  std::vector<int32_t> cu_seqlens{0};
  for (const int length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
  const int tokens = cu_seqlens.back(), size = num_heads * head_dim;
  const int longest = *std::max_element(lengths.begin(), lengths.end());
  Values values = random_values(static_cast<size_t>(tokens) * 3 * size);
  for (int t = 0; t < tokens; t += 5)  // rows that take all of the softmax
    for (int c = 0; c < size; ++c) values[static_cast<size_t>(t) * 3 * size + c] *= 30.0f;
  const Matrix qkv(tokens, 3 * size, dtype, values);
  const Buffer<int32_t> device_seqlens(cu_seqlens);
  const Matrix context(tokens, size, dtype);
  constexpr int kMaxDistance = 20;
  const Values bias = random_values(static_cast<size_t>(num_heads) * (2 * kMaxDistance + 1), 2.0f);
  const Buffer<float> device_bias(bias);
  AttentionArgs args{qkv.view, device_seqlens.data(), static_cast<int>(lengths.size()),         longest,     num_heads,
                     head_dim, context.view,          is_biased ? device_bias.data() : nullptr, kMaxDistance};
  const Values got = run_twice([&] { return attention_varlen(args, nullptr); }, [&] { return context.values(); });

  std::vector<double> expected(got.size());
  for (size_t s = 0; s < lengths.size(); ++s)
    for (int head = 0; head < num_heads; ++head)
      for (int i = cu_seqlens[s]; i < cu_seqlens[s + 1]; ++i) {
        std::vector<double> weights;
        for (int j = cu_seqlens[s]; j < cu_seqlens[s + 1]; ++j) {
          double score = 0;
          for (int d = 0; d < head_dim; ++d)
            score += static_cast<double>(qkv.at(i, head * head_dim + d)) * qkv.at(j, size + head * head_dim + d);
          const int place = kMaxDistance + std::clamp(j - i, -kMaxDistance, kMaxDistance);
          weights.push_back(score / std::sqrt(static_cast<double>(head_dim)) +
                            (is_biased ? bias[head * (2 * kMaxDistance + 1) + place] : 0.0));
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        double sum = 0;
        for (double& weight : weights) sum += weight = std::exp(weight - top);
        for (int d = 0; d < head_dim; ++d) {
          double& y = expected[static_cast<size_t>(i) * size + head * head_dim + d];
          for (int j = 0; j < lengths[s]; ++j)
            y += weights[j] / sum * qkv.at(cu_seqlens[s] + j, 2 * size + head * head_dim + d);
        }
      }
  check_close(got, expected, rounding(dtype));

  // The last sequence alone, with room for a longer one: the same bits.
  const std::vector<int32_t> one{0, lengths.back()};
  const Buffer<int32_t> device_one(one);
  const int first = tokens - lengths.back();
  const Matrix alone(lengths.back(), size, dtype);
  args.qkv = qkv.from_row(first);
  args.cu_seqlens = device_one.data();
  args.num_sequences = 1;
  args.max_seqlen = lengths.back() + 70;
  args.context = alone.view;
  CHECK(attention_varlen(args, nullptr) == cudaSuccess);
  CHECK(same_bits(alone.values(), Values(got.begin() + static_cast<std::ptrdiff_t>(first) * size, got.end())));
}

}  // namespace

int main() {
  constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16;
  for (const int width : {32, 30, 131})
    for (const DType table : {kF16, kF32, DType::kS8})
      test_embed_layernorm(width == 32 ? 65 : 2, width, table, width != 30, width == 131 ? kF32 : kF16);
  test_add_layernorm(65, 64, kF16, kF16, true, false, false);
  test_add_layernorm(7, 130, kF32, kF32, true, true, true);
  test_add_layernorm(2, 768, kBF16, kF16, true, true, false);
  test_add_layernorm(7, 33, kF16, kF32, false, true, true);
  test_add_layernorm(1, 4099, kF16, kF16, true, true, false);
  for (const int width : {1, 31, 64, 300})
    for (const DType dtype : {kF32, kF16, kBF16})
      test_quantize_rows(awkward_values(13, width), width, dtype, width % 2 == 0);
  // So many values that some would round otherwise with a fused multiply-add.
  test_quantize_rows(random_values(size_t{512} * 4096), 4096, kF32, false);
  for (const int width : {3, 64, 130}) {
    test_pool(width, width == 64 ? kF16 : kF32);
    test_gather_rows(width);
  }

  test_linear_f16(1, 16, 8, kF16, Activation::kIdentity, kF32, false);
  test_linear_f16(2, 24, 7, kBF16, Activation::kTanh, kF16, true);
  test_linear_f16(63, 40, 33, kF16, Activation::kGeluErf, kF16, false);
  test_linear_f16(64, 64, 64, kF16, Activation::kRelu, kF32, true);
  test_linear_f16(65, 99, 127, kBF16, Activation::kGeluTanh, kF32, false);
  test_linear_f16(97, 257, 104, kF16, Activation::kIdentity, kF16, true);
  test_linear_f16(31, 48, 65, kF16, Activation::kSilu, kF32, false);
  test_linear_f16(225, 97, 225, kF16, Activation::kIdentity, kBF16, false);
  test_linear_s8(1, 16, 8, Activation::kIdentity, false, false);
  test_linear_s8(2, 1000, 7, Activation::kIdentity, true, false);
  test_linear_s8(63, 40, 33, Activation::kGeluErf, false, false);
  test_linear_s8(65, 203, 128, Activation::kIdentity, false, true);
  test_linear_s8(128, 65, 113, Activation::kRelu, false, false);
  test_linear_f32(1, 64, 9, kF32, Activation::kTanh);
  test_linear_f32(17, 131, 3, kF16, Activation::kIdentity);

  for (const int head_dim : {32, 64, 128, 24, 40, 52, 1})
    test_attention({1, 65, 2, 64, 97, 63}, head_dim == 32 ? 2 : 1, head_dim, kF16);
  test_attention({130, 3}, 3, 64, kBF16);
  test_attention({66, 17}, 3, 7, kBF16);
  test_attention({1, 65, 30, 97}, 2, 32, kF16, true);
  return 0;
}
