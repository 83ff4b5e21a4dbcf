// Every kernel of every ISA this CPU can run, against plain reference code written here (f64 where floats are summed),
// on awkward shapes and values; and the ISAs with a fused multiply-add against each other, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/dispatch.h"
#include "cpu/pack.h"

using namespace edgebert;

namespace {

std::mt19937 rng(7);

std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> found;
  const std::string names = usable_isas();
  for (size_t at = 0; at < names.size();) {
    const size_t comma = std::min(names.find(',', at), names.size());
    found.push_back(&select_kernels(names.substr(at, comma - at).c_str()));
    at = comma + 1;
  }
  return found;
}

bool has_fused_multiply_add(const KernelTable& table) {
  return std::strcmp(table.isa, "baseline") != 0 && std::strncmp(table.isa, "wasm", 4) != 0;
}

// Rows padded as the engine pads them, the padding filled with NaN: no kernel may let it into a result.
struct Matrix {
  int rows, width, stride;
  std::vector<float> values;
  Matrix(int rows, int width)
      : rows(rows),
        width(width),
        stride(row_stride(width)),
        values(static_cast<size_t>(rows) * stride + kSlackFloats, NAN) {}
  float* row(int r) { return values.data() + static_cast<size_t>(r) * stride; }
  const float* row(int r) const { return values.data() + static_cast<size_t>(r) * stride; }
};

Matrix random_matrix(int rows, int width, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  Matrix m(rows, width);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < width; ++c) m.row(r)[c] = normal(rng);
  return m;
}

// Rows that break careless code: zeros, one huge value, all equal, all negative, tiny.
Matrix awkward_matrix(int rows, int width) {
  Matrix m = random_matrix(rows, width);
  for (int r = 0; r < rows; ++r)
    for (int c = 0; c < width; ++c) {
      float& x = m.row(r)[c];
      switch (r % 6) {
        case 1:
          x = 0.0f;
          break;
        case 2:
          x = c == width / 2 ? 3.0e4f : x;
          break;
        case 3:
          x = 0.75f;
          break;
        case 4:
          x = -std::fabs(x) - 1.0f;
          break;
        case 5:
          x *= 1e-20f;
          break;
        default:
          break;
      }
    }
  return m;
}

std::vector<float> random_vector(int n, float mean, float scale) {
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

// The error is held against the largest value, or against `floor` where that is larger: the activations' polynomials
// have an absolute error (math-inl.h).
void expect_close(const Matrix& got, const std::function<double(int, int)>& want, double tolerance, const char* what,
                  double floor = 1e-30) {
  double largest = floor;
  for (int r = 0; r < got.rows; ++r)
    for (int c = 0; c < got.width; ++c) largest = std::max(largest, std::fabs(want(r, c)));
  for (int r = 0; r < got.rows; ++r)
    for (int c = 0; c < got.width; ++c) {
      const double error = std::fabs(got.row(r)[c] - want(r, c));
      if (!(error <= tolerance * largest)) {
        std::fprintf(stderr, "%s [%d, %d] of [%d, %d]: got %g, want %g, error over largest %g\n", what, r, c, got.rows,
                     got.width, got.row(r)[c], want(r, c), error / largest);
        std::exit(1);
      }
    }
}

bool same_bits(const Matrix& a, const Matrix& b) {
  for (int r = 0; r < a.rows; ++r)
    if (std::memcmp(a.row(r), b.row(r), sizeof(float) * a.width) != 0) return false;
  return true;
}

// The first result of each case, to compare other ISAs' with: every one's where a case is exact, else those that have a
// fused multiply-add with one another, and those that have none.
struct SameBits {
  std::map<std::pair<size_t, bool>, Matrix> firsts;
  size_t next = 0;
  void start() { next = 0; }
  void check(const KernelTable& table, const Matrix& got, bool is_exact = false) {
    const auto first = firsts.emplace(std::pair(next++, is_exact || has_fused_multiply_add(table)), got).first;
    CHECK(same_bits(first->second, got));
  }
};

// TEST_KERNEL(name) { ... } checks a kernel of `table` on random data that are the same for every ISA, and gives its
// results to `bits`. The kernel's line in kernels.inc runs it on every ISA, and does not compile without it.
template <auto kernel>
constexpr bool is_tested = false;
#define TEST_KERNEL(name)                              \
  template <>                                          \
  constexpr bool is_tested<&KernelTable::name> = true; \
  void test_##name([[maybe_unused]] const KernelTable& table, [[maybe_unused]] SameBits& bits)

// Codes by the contract, written out as edgebert/quant.py has it.
struct Codes {
  std::vector<uint8_t> q;
  std::vector<float> a_scale;
  std::vector<int32_t> zn;
};
Codes reference_codes(const Matrix& x, const float* inv_smooth) {
  Codes codes;
  for (int r = 0; r < x.rows; ++r) {
    std::vector<float> v(x.row(r), x.row(r) + x.width);
    float lo = -1e-12f, hi = 0.0f;
    for (int c = 0; c < x.width; ++c) {
      if (inv_smooth) v[c] = v[c] * inv_smooth[c];
      lo = std::min(lo, v[c]);
      hi = std::max(hi, v[c]);
    }
    const float span = hi - lo, inverse = 255.0f / span, zn = std::nearbyint(lo * inverse);
    codes.a_scale.push_back(span / 255.0f);
    codes.zn.push_back(static_cast<int32_t>(zn));
    for (float value : v)
      codes.q.push_back(static_cast<uint8_t>(std::clamp(std::nearbyint(value * inverse - zn), 0.0f, 255.0f)));
  }
  return codes;
}

// Buffers for CodeRows.
struct CodeBuffer {
  std::vector<uint8_t> bytes;
  std::vector<float> a_scale;
  std::vector<int32_t> neg_zero;
  CodeRows rows;
  CodeBuffer(const KernelTable& table, int count, int width)
      : bytes(static_cast<size_t>(count) * round_up(width, 64) + 64), a_scale(count), neg_zero(count) {
    rows = {bytes.data(), round_up(width, 64), a_scale.data(), neg_zero.data(), table.code_flip};
  }
  // An ISA may store code - 128 and carry 128 in neg_zero.
  void check(const Codes& want, int width) const {
    for (size_t r = 0; r < a_scale.size(); ++r) {
      CHECK(a_scale[r] == want.a_scale[r]);
      const int flip = neg_zero[r] - want.zn[r];
      CHECK(flip == 0 || flip == 128);
      for (int c = 0; c < width; ++c) CHECK((bytes[r * rows.stride + c] ^ flip) == want.q[r * width + c]);
    }
  }
};

TensorView view(const std::vector<float>& v, std::vector<int64_t> shape) {
  return {reinterpret_cast<const uint8_t*>(v.data()), DType::kF32, std::move(shape), v.size() * 4};
}
TensorView view(const std::vector<int32_t>& v) {
  return {reinterpret_cast<const uint8_t*>(v.data()), DType::kS32, {static_cast<int64_t>(v.size())}, v.size() * 4};
}
TensorView view(const std::vector<int8_t>& v, std::vector<int64_t> shape) {
  return {reinterpret_cast<const uint8_t*>(v.data()), DType::kS8, std::move(shape), v.size()};
}

double gelu_erf(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
constexpr double kPi = 3.14159265358979323846;  // M_PI, which is not everywhere
double gelu_tanh(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / kPi) * (x + 0.044715 * x * x * x))); }
double activate(Epilogue epilogue, double x) {
  switch (epilogue) {
    case Epilogue::kBias:
      return x;
    case Epilogue::kGeluErf:
      return gelu_erf(x);
    case Epilogue::kGeluTanh:
      return gelu_tanh(x);
    case Epilogue::kRelu:
      return std::max(x, 0.0);
    case Epilogue::kTanh:
      return std::tanh(x);
    case Epilogue::kSilu:
      return x / (1 + std::exp(-x));
  }
  return 0;
}
constexpr Epilogue kEpilogues[] = {Epilogue::kBias, Epilogue::kGeluErf, Epilogue::kGeluTanh,
                                   Epilogue::kRelu, Epilogue::kTanh,    Epilogue::kSilu};

TEST_KERNEL(quantize_rows) {
  for (const int rows : {1, 2, 7, 97})
    for (const int width : {1, 15, 16, 17, 31, 384, 385}) {
      const Matrix x = awkward_matrix(rows, width);
      const std::vector<float> inv_smooth = random_vector(width, 1.0f, 0.3f);
      for (const float* smooth : {static_cast<const float*>(nullptr), inv_smooth.data()}) {
        CodeBuffer got(table, rows, width);
        table.quantize_rows({x.values.data(), x.stride, width, smooth, got.rows}, 0, rows);
        got.check(reference_codes(x, smooth), width);
      }
    }
}

TEST_KERNEL(linear_u8s8_f32) {
  const int nr = table.s8_nr;
  for (const int rows : {1, 2, 3, 5, 6, 7, 13, 97})
    for (const int inputs : {1, 3, 4, 33, 384})
      for (const int outputs : {1, 15, 16, 17, 63, 64, 65, 200}) {
        const int largest = outputs % 2 == 0 ? 63 : 127;  // weight; the first as portable files have them
        const Matrix x = awkward_matrix(rows, inputs);
        std::vector<int8_t> weight(static_cast<size_t>(inputs) * outputs);
        std::vector<int32_t> colsum(outputs);
        for (size_t i = 0; i < weight.size(); ++i) {
          const int any = static_cast<int>(rng() % (2 * largest + 1)) - largest;
          weight[i] = static_cast<int8_t>(i % 5 == 0 ? largest : i % 7 == 0 ? -largest : any);
          colsum[i % outputs] += weight[i];
        }
        const std::vector<float> scale = random_vector(outputs, 0.01f, 0.002f), bias = random_vector(outputs, 0, 1);
        Arena arena;
        const PackedLinearU8S8 packed =
            pack_linear_u8s8(view(weight, {inputs, outputs}), view(scale, {outputs}), view(colsum),
                             view(bias, {outputs}), WeightLayout::kInputsByOutputs, nr, table.narrow_offset, arena);
        CodeBuffer codes(table, rows, inputs);
        table.quantize_rows({x.values.data(), x.stride, inputs, nullptr, codes.rows}, 0, rows);
        const Codes reference = reference_codes(x, nullptr);
        const auto sum = [&](int r, int n) {
          int32_t acc = reference.zn[r] * colsum[n];
          for (int k = 0; k < inputs; ++k) acc += reference.q[r * inputs + k] * weight[k * outputs + n];
          return (static_cast<float>(acc) * scale[n]) * reference.a_scale[r] + bias[n];
        };
        for (const Epilogue epilogue : kEpilogues) {
          if (epilogue != Epilogue::kBias && outputs != 65) continue;
          Matrix y(rows, outputs);
          // two row ranges and single panels must give what one call gives
          const int panels = (outputs + nr - 1) / nr;
          for (int p = 0; p < panels; ++p) {
            table.linear_u8s8_f32({codes.rows, packed, epilogue, y.values.data(), y.stride}, {0, rows / 2, p, p + 1});
            table.linear_u8s8_f32({codes.rows, packed, epilogue, y.values.data(), y.stride},
                                  {rows / 2, rows, p, p + 1});
          }
          if (epilogue == Epilogue::kBias) {
            for (int r = 0; r < rows; ++r)
              for (int n = 0; n < outputs; ++n) CHECK(y.row(r)[n] == sum(r, n));
          } else {
            expect_close(y, [&](int r, int n) { return activate(epilogue, sum(r, n)); }, 3e-7, "linear_u8s8_f32", 1.0);
          }
          bits.check(table, y, epilogue == Epilogue::kBias);
        }
      }
}

TEST_KERNEL(linear_f32) {
  for (const int rows : {1, 2, 5, 6, 7, 97})
    for (const int inputs : {1, 3, 64, 385})
      for (const int outputs : {1, 15, 16, 17, 65}) {
        const Matrix x = random_matrix(rows, inputs);
        const std::vector<float> weight = random_vector(inputs * outputs, 0, 0.05f),
                                 bias = random_vector(outputs, 0, 1);
        std::vector<float> transposed(weight.size());
        for (int k = 0; k < inputs; ++k)
          for (int n = 0; n < outputs; ++n) transposed[n * inputs + k] = weight[k * outputs + n];
        Arena arena;
        const PackedLinearF32 packed = pack_linear_f32(view(weight, {inputs, outputs}), view(bias, {outputs}),
                                                       WeightLayout::kInputsByOutputs, table.f32_nr, arena);
        const PackedLinearF32 packed_transposed =
            pack_linear_f32(view(transposed, {outputs, inputs}), view(bias, {outputs}), WeightLayout::kOutputsByInputs,
                            table.f32_nr, arena);
        const int panels = (outputs + table.f32_nr - 1) / table.f32_nr;
        for (const Epilogue epilogue : kEpilogues) {
          Matrix y(rows, outputs), again(rows, outputs);
          table.linear_f32({x.values.data(), x.stride, packed, epilogue, y.values.data(), y.stride},
                           {0, rows, 0, panels});
          table.linear_f32({x.values.data(), x.stride, packed_transposed, epilogue, again.values.data(), y.stride},
                           {0, rows, 0, panels});
          CHECK(same_bits(y, again));
          const auto want = [&](int r, int n) {
            double sum = 0;
            for (int k = 0; k < inputs; ++k) sum += static_cast<double>(x.row(r)[k]) * weight[k * outputs + n];
            return activate(epilogue, sum + bias[n]);
          };
          // roundings of 2**-24 add up like a random walk over the inputs
          const double tolerance = 4e-7 + 4 * 6e-8 * std::sqrt(static_cast<double>(inputs));
          expect_close(y, want, tolerance, "linear_f32", epilogue == Epilogue::kBias ? 1e-30 : 1.0);
          bits.check(table, y);
        }
      }
}

TEST_KERNEL(rotate) {
  for (const int head_dim : {2, 6, 32, 34, 64, 80}) {
    const int heads = 2, size = heads * head_dim, half = head_dim / 2, stride = row_stride(half);
    const std::vector<int32_t> positions{0, 1, 2, 0, 7, 500};
    const int rows = static_cast<int>(positions.size());
    std::vector<float> cosines(501 * stride, NAN), sines(501 * stride, NAN);
    for (int t = 0; t <= 500; ++t)
      for (int j = 0; j < half; ++j) {
        cosines[t * stride + j] = std::cos(static_cast<float>(t) / (j + 1));
        sines[t * stride + j] = std::sin(static_cast<float>(t) / (j + 1));
      }
    const Matrix x = random_matrix(rows, 3 * size);
    Matrix got = x;
    table.rotate({got.values.data(), got.stride, heads, head_dim, positions.data(), cosines.data(), sines.data()}, 0,
                 rows);
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < 3 * size; ++c) {
        const int d = c % head_dim, j = d % half;
        const float cosine = cosines[positions[r] * stride + j], sine = sines[positions[r] * stride + j];
        const float a = x.row(r)[c - d + j], b = x.row(r)[c - d + j + half];
        const float turned = d < half ? a * cosine - b * sine : b * cosine + a * sine;
        CHECK(got.row(r)[c] == (c < 2 * size ? turned : x.row(r)[c]));
      }
    bits.check(table, got, true);
  }
}

TEST_KERNEL(gate) {
  for (const int rows : {1, 4, 7})
    for (const int width : {1, 15, 16, 17, 384, 385})
      for (const Epilogue activation : kEpilogues) {
        const Matrix x = random_matrix(rows, 2 * width);
        const std::vector<float> inv_smooth = random_vector(width, 1, 0.2f);
        Matrix got = x;
        CodeBuffer codes(table, rows, width);
        table.gate({got.values.data(), got.stride, width, activation, true, inv_smooth.data(), codes.rows}, 0, rows);
        Matrix products(rows, width);
        for (int r = 0; r < rows; ++r) std::copy(got.row(r), got.row(r) + width, products.row(r));
        const auto want = [&](int r, int c) {
          return activate(activation, x.row(r)[c]) * static_cast<double>(x.row(r)[width + c]);
        };
        // an activation's limit, as in linear_f32, and the rounding of the product
        expect_close(products, want, 4e-7 + 6e-8, "gate", 1.0);
        codes.check(reference_codes(products, inv_smooth.data()), width);
        bits.check(table, products);
      }
}

// Attention's bias of the scores by distance, or none.
enum class Bias { kNone, kNumbers, kTables };

// Biases by distance: a number each, or products with the columns of two tables; farther keys have the last one.
struct PositionBias {
  const int head_dim, max_distance;
  std::vector<float> values, keys, queries;
  std::vector<int32_t> rows;  // exact up to 60, then one for five distances
  int stride = 0;

  PositionBias(int heads, int head_dim, Bias kind)
      : head_dim(head_dim), max_distance(kind == Bias::kTables ? 200 : 20) {
    if (kind == Bias::kNumbers) values = random_vector(heads * (2 * max_distance + 1), 0.0f, 2.0f);
    if (kind != Bias::kTables) return;
    for (int d = -max_distance, row = 0; d <= max_distance; ++d) {
      if (d > -max_distance && (std::abs(d) <= 60 || d % 5 == 0)) ++row;
      rows.push_back(row);
    }
    stride = row_stride(rows.back() + 1) | kRowAlign;
    keys = random_vector(heads * head_dim * stride, 0.0f, 1.0f);
    queries = random_vector(heads * head_dim * stride, 0.0f, 1.0f);
  }
  static const float* data(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }
  int num_rows() const { return rows.empty() ? 0 : rows.back() + 1; }

  // In type T, for a query and a key of a head.
  template <class T>
  T at(int head, int distance, const float* q, const float* k) const {
    const int place = max_distance + std::clamp(distance, -max_distance, max_distance);
    if (!values.empty()) return values[head * (2 * max_distance + 1) + place];
    T of_query = 0, of_key = 0;
    for (int d = 0; d < head_dim && !rows.empty(); ++d) {
      const int i = (head * head_dim + d) * stride + rows[place];
      of_query += static_cast<T>(q[d]) * static_cast<T>(keys[i]);
      of_key += static_cast<T>(k[d]) * static_cast<T>(queries[i]);
    }
    return (of_query + of_key) / std::sqrt(static_cast<T>(head_dim));
  }
};

struct AttentionCase {
  int head_dim, window, longest;
  Bias bias = Bias::kNone;
};
constexpr AttentionCase kAttentionCases[] = {{32, 0, 130},
                                             {64, 0, 600},
                                             {7, 0, 130},
                                             {48, 0, 130},
                                             {80, 0, 130},
                                             {32, 0, 130, Bias::kNumbers},
                                             {7, 0, 130, Bias::kNumbers},
                                             {32, 1, 130},
                                             {64, 64, 300},
                                             {7, 17, 130},
                                             {48, 200, 270},
                                             {16, 5, 129},
                                             {80, 9, 130, Bias::kNumbers},
                                             {64, 0, 600, Bias::kTables},
                                             {7, 0, 130, Bias::kTables},
                                             {20, 9, 130, Bias::kTables}};

// Random rows of sequences of these lengths, and where a kernel's context of them goes.
struct AttentionInputs {
  static constexpr int kHeads = 2;
  const int size;
  std::vector<int32_t> cu_seqlens{0};
  Matrix qkv, context;
  const PositionBias bias;
  std::vector<float> scratch;

  AttentionInputs(const AttentionCase& sizes, std::initializer_list<int> lengths, float scale)
      : size(kHeads * sizes.head_dim),
        qkv(random_matrix(std::accumulate(lengths.begin(), lengths.end(), 0), 3 * size, scale)),
        context(std::accumulate(lengths.begin(), lengths.end(), 0), size),
        bias(kHeads, sizes.head_dim, sizes.bias),
        scratch(attention_scratch(sizes.longest, sizes.head_dim, bias.num_rows()), NAN) {
    for (const int length : lengths) cu_seqlens.push_back(cu_seqlens.back() + length);
  }

  AttentionArgs args(int head_dim, int window) {
    return {qkv.values.data(),
            qkv.stride,
            size,
            head_dim,
            cu_seqlens.data(),
            context.values.data(),
            context.stride,
            PositionBias::data(bias.values),
            bias.max_distance,
            window,
            PositionBias::data(bias.keys),
            PositionBias::data(bias.queries),
            bias.rows.data(),
            bias.stride,
            nullptr};
  }
};

// Scores, softmax and values in type T, in the plainest order; a window of 0: all keys.
template <class T>
std::vector<T> naive_attention(const Matrix& qkv, int first, int length, int size, int head_dim, int head,
                               const PositionBias& bias, int window) {
  std::vector<T> out(static_cast<size_t>(length) * head_dim);
  std::vector<T> p(length);
  for (int i = 0; i < length; ++i) {
    const float* q = qkv.row(first + i) + head * head_dim;
    T top = -INFINITY, sum = 0;
    for (int j = 0; j < length; ++j) {
      const float* k = qkv.row(first + j) + size + head * head_dim;
      p[j] = 0;
      for (int d = 0; d < head_dim; ++d) p[j] += static_cast<T>(q[d]) * static_cast<T>(k[d]);
      p[j] /= std::sqrt(static_cast<T>(head_dim));
      p[j] += bias.at<T>(head, j - i, q, k);
      if (window > 0 && std::abs(i - j) > window) p[j] = -INFINITY;
      top = std::max(top, p[j]);
    }
    for (int j = 0; j < length; ++j) sum += p[j] = std::exp(p[j] - top);
    for (int j = 0; j < length; ++j)
      for (int d = 0; d < head_dim; ++d)
        out[i * head_dim + d] += p[j] / sum * static_cast<T>(qkv.row(first + j)[2 * size + head * head_dim + d]);
  }
  return out;
}

// The error against f64 is at most twice that of naive f32 code, and two roundings of the largest value.
TEST_KERNEL(attention_varlen) {
  for (const AttentionCase& sizes : kAttentionCases) {
    const int head_dim = sizes.head_dim, window = sizes.window;
    AttentionInputs inputs(sizes, {1, 2, 5, 63, 64, 65, sizes.longest, 3}, 1.5f);
    Matrix &qkv = inputs.qkv, &context = inputs.context;
    const std::vector<int32_t>& cu_seqlens = inputs.cu_seqlens;
    const PositionBias& bias = inputs.bias;
    const int size = inputs.size;
    for (int c = 0; c < 3 * size; ++c) qkv.row(3)[c] *= 20.0f;  // a softmax with one large score
    const AttentionArgs args = inputs.args(head_dim, window);
    for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s)
      for (int head = 0; head < AttentionInputs::kHeads; ++head) {
        table.attention_varlen(args, static_cast<int>(s), head, inputs.scratch.data());
        const int first = cu_seqlens[s], length = cu_seqlens[s + 1] - first;
        const auto exact = naive_attention<double>(qkv, first, length, size, head_dim, head, bias, window);
        const auto naive = naive_attention<float>(qkv, first, length, size, head_dim, head, bias, window);
        double naive_error = 0, error = 0, largest_value = 0;
        for (int i = 0; i < length; ++i)
          for (int d = 0; d < head_dim; ++d) {
            const double want = exact[i * head_dim + d];
            const float value = qkv.row(first + i)[2 * size + head * head_dim + d];
            largest_value = std::max(largest_value, std::fabs(static_cast<double>(value)));
            naive_error = std::max(naive_error, std::fabs(naive[i * head_dim + d] - want));
            error = std::max(error, std::fabs(context.row(first + i)[head * head_dim + d] - want));
          }
        if (!(error <= 2 * naive_error + 1.2e-7 * largest_value)) {
          std::fprintf(stderr, "attention_varlen %s head_dim %d window %d length %d: error %g, naive f32 %g\n",
                       table.isa, head_dim, window, length, error, naive_error);
          std::exit(1);
        }
      }
    bits.check(table, context);
  }
}

// Attention by the contract of attention_dtype s8: edgebert/quant.py attention_u8s8_f32, written out. A code of
// the softmax may fall one off where exp2 and std::exp differ in the last place: two such flips a row are allowed.
TEST_KERNEL(attention_varlen_u8s8) {
  for (const AttentionCase& sizes : kAttentionCases) {
    const int head_dim = sizes.head_dim, window = sizes.window;
    AttentionInputs inputs(sizes, {1, 2, 5, 15, 16, 17, 63, 64, 65, sizes.longest}, 1.0f);
    Matrix &qkv = inputs.qkv, &context = inputs.context;
    const std::vector<int32_t>& cu_seqlens = inputs.cu_seqlens;
    const PositionBias& bias = inputs.bias;
    const int size = inputs.size;
    for (int c = 0; c < 3 * size; ++c) qkv.row(4)[c] = 0.0f;
    const AttentionArgs args = inputs.args(head_dim, window);
    for (size_t s = 0; s + 1 < cu_seqlens.size(); ++s)
      for (int head = 0; head < AttentionInputs::kHeads; ++head) {
        table.attention_varlen_u8s8(args, static_cast<int>(s), head, inputs.scratch.data());
        const int first = cu_seqlens[s], length = cu_seqlens[s + 1] - first;
        const auto at = [&](int t, int part, int d) { return qkv.row(first + t)[part * size + head * head_dim + d]; };
        std::vector<float> scale[3];
        std::vector<int> codes[3];
        for (int part = 0; part < 3; ++part) {
          scale[part].assign(part == 2 ? head_dim : length, 1e-12f);
          for (int t = 0; t < length; ++t)
            for (int d = 0; d < head_dim; ++d) {
              float& top = scale[part][part == 2 ? d : t];
              top = std::max(top, std::fabs(at(t, part, d)));
            }
          for (int t = 0; t < length; ++t)
            for (int d = 0; d < head_dim; ++d)
              codes[part].push_back(
                  static_cast<int>(std::nearbyint(at(t, part, d) * (127.0f / scale[part][part == 2 ? d : t]))));
          for (float& x : scale[part]) x = x / 127.0f;
        }
        for (int i = 0; i < length; ++i) {
          std::vector<double> score(length), context_of(head_dim);
          double top = -INFINITY, sum = 0;
          for (int j = 0; j < length; ++j) {
            int acc = 0;
            for (int d = 0; d < head_dim; ++d) acc += codes[0][i * head_dim + d] * codes[1][j * head_dim + d];
            score[j] = static_cast<double>(acc) * scale[1][j] * scale[0][i] / std::sqrt(static_cast<double>(head_dim));
            score[j] += bias.at<double>(head, j - i, &qkv.row(first + i)[head * head_dim],
                                        &qkv.row(first + j)[size + head * head_dim]);
            if (window > 0 && std::abs(i - j) > window) score[j] = -INFINITY;
            top = std::max(top, score[j]);
          }
          double largest_value = 0;
          for (int j = 0; j < length; ++j) {
            const double p = std::nearbyint(255 * std::exp(score[j] - top));
            sum += p;
            for (int d = 0; d < head_dim; ++d) {
              const double value = static_cast<double>(codes[2][j * head_dim + d]) * scale[2][d];
              context_of[d] += p * value;
              largest_value = std::max(largest_value, std::fabs(value));
            }
          }
          for (int d = 0; d < head_dim; ++d)
            CHECK(std::fabs(context.row(first + i)[head * head_dim + d] - context_of[d] / sum) <=
                  1e-6 * largest_value + 2 * largest_value / sum);  // two codes of `sum` may have flipped
        }
      }
    bits.check(table, context);
  }
}

double norm_of_row(const std::vector<double>& x, int c, const std::vector<float>& weight,
                   const std::vector<float>& bias, double eps) {
  double mean = 0, variance = 0;
  for (double v : x) mean += v / x.size();
  for (double v : x) variance += (v - mean) * (v - mean) / x.size();
  return (x[c] - mean) / std::sqrt(variance + eps) * weight[c] + bias[c];
}

TEST_KERNEL(add_layernorm) {
  for (const int rows : {1, 7})
    for (const int width : {1, 15, 16, 17, 384, 385}) {
      const Matrix x = random_matrix(rows, width, 3.0f), residual = random_matrix(rows, width);
      const std::vector<float> weight = random_vector(width, 1, 0.1f), bias = random_vector(width, 0, 0.1f),
                               inv_smooth = random_vector(width, 1, 0.2f);
      for (const bool adds : {false, true}) {
        Matrix out(rows, width);
        CodeBuffer codes(table, rows, width);
        AddLayerNormArgs args{};
        args.x = x.values.data();
        args.x_stride = x.stride;
        if (adds) {
          args.residual = residual.values.data();
          args.residual_stride = residual.stride;
        }
        args.norm = {weight.data(), bias.data(), width, 1e-5f};
        args.out = out.values.data();
        args.out_stride = out.stride;
        args.quantize = true;
        args.inv_smooth = inv_smooth.data();
        args.codes = codes.rows;
        table.add_layernorm(args, 0, rows);
        const auto want = [&](int r, int c) {
          std::vector<double> row(width);
          for (int i = 0; i < width; ++i) row[i] = x.row(r)[i] + (adds ? residual.row(r)[i] : 0.0f);
          return norm_of_row(row, c, weight, bias, 1e-5);
        };
        expect_close(out, want, 2e-6, "add_layernorm");
        codes.check(reference_codes(out, inv_smooth.data()), width);  // fused codes = codes of its own output
        bits.check(table, out);
        Matrix sum = residual, again(rows, width);  // the sums may be kept where the residual is
        args.residual = adds ? sum.values.data() : nullptr;
        args.sum = sum.values.data();
        args.sum_stride = sum.stride;
        args.out = again.values.data();
        table.add_layernorm(args, 0, rows);
        CHECK(same_bits(again, out));
        for (int r = 0; r < rows; ++r)
          for (int c = 0; c < width; ++c) CHECK(sum.row(r)[c] == x.row(r)[c] + (adds ? residual.row(r)[c] : 0.0f));
      }
    }
}

TEST_KERNEL(embed_layernorm) {
  for (const int width : {5, 16, 40}) {
    const int vocab = 11, positions = 9, types = 2, tokens = 6;
    const int rows_of[] = {vocab, positions, types};
    std::vector<float> f32[3], scale[3];
    std::vector<int8_t> s8[3];
    for (int t = 0; t < 3; ++t) {
      scale[t] = random_vector(rows_of[t], 0.02f, 0.003f);
      for (int i = 0; i < rows_of[t] * width; ++i) {
        s8[t].push_back(static_cast<int8_t>(static_cast<int>(rng() % 255) - 127));
        f32[t].push_back(static_cast<float>(s8[t][i]) * scale[t][i / width]);
      }
    }
    const std::vector<float> weight = random_vector(width, 1, 0.1f), bias = random_vector(width, 0, 0.1f);
    const int32_t ids[] = {0, 10, 3, 3, 7, 1}, type_ids[] = {0, 1, 1, 0, 1, 0}, position_ids[] = {2, 3, 4, 2, 3, 8};
    Matrix outs[2] = {Matrix(tokens, width), Matrix(tokens, width)};
    for (const bool is_s8 : {false, true}) {
      EmbedArgs args{};
      EmbeddingTable* to[] = {&args.word, &args.position, &args.token_type};
      for (int t = 0; t < 3; ++t)
        *to[t] = is_s8 ? EmbeddingTable{nullptr, s8[t].data(), scale[t].data()}
                       : EmbeddingTable{f32[t].data(), nullptr, nullptr};
      args.num_token_types = types;
      args.norm = {weight.data(), bias.data(), width, 1e-12f};
      args.input_ids = ids;
      args.token_type_ids = type_ids;
      args.position_ids = position_ids;
      args.out = outs[is_s8].values.data();
      args.out_stride = outs[is_s8].stride;
      table.embed_layernorm(args, 0, tokens);
    }
    CHECK(same_bits(outs[0], outs[1]));  // a row times its scale, in the table or at the look-up
    const auto want = [&](int r, int c) {
      std::vector<double> row(width);
      for (int i = 0; i < width; ++i)
        row[i] = (f32[0][ids[r] * width + i] + f32[2][type_ids[r] * width + i]) + f32[1][position_ids[r] * width + i];
      return norm_of_row(row, c, weight, bias, 1e-12);
    };
    expect_close(outs[0], want, 2e-6, "embed_layernorm");
    bits.check(table, outs[0]);
  }
}

// What the sum of a sequence's values weighs each with.
double pool_weight(Fold fold, int t, int count) {
  switch (fold) {
    case Fold::kMean:
      return 1.0 / count;
    case Fold::kFirst:
      return t == 0 ? 1.0 : 0.0;
    case Fold::kMeanSqrtLen:
      return 1.0 / std::sqrt(count);
    case Fold::kWeightedMean:
      return (t + 1) / (count * (count + 1) / 2.0);
    case Fold::kLast:
      return t == count - 1 ? 1.0 : 0.0;
    default:
      return 1.0;
  }
}

TEST_KERNEL(pool) {
  for (const int width : {1, 17, 384}) {
    const std::vector<int32_t> cu_seqlens{0, 1, 6, 70};
    const Matrix x = random_matrix(70, width);
    for (const Fold fold :
         {Fold::kMean, Fold::kFirst, Fold::kMax, Fold::kMeanSqrtLen, Fold::kWeightedMean, Fold::kLast, Fold::kSum})
      for (const bool normalizes : {false, true})
        for (const bool continues : {false, true}) {
          if (continues && fold != Fold::kMax && fold != Fold::kSum) continue;
          const Matrix before = random_matrix(3, width);
          Matrix out = before;
          table.pool({x.values.data(), x.stride, width, cu_seqlens.data(), fold, continues, normalizes,
                      out.values.data(), out.stride},
                     0, 3);
          const auto pooled = [&](int s, int c) {
            const int first = cu_seqlens[s], count = cu_seqlens[s + 1] - first;
            double sum = continues ? before.row(s)[c] : fold == Fold::kMax ? x.row(first)[c] : 0;
            for (int t = 0; t < count; ++t) {
              const double value = x.row(first + t)[c];
              sum = fold == Fold::kMax ? std::max(sum, value) : sum + pool_weight(fold, t, count) * value;
            }
            return sum;
          };
          const auto want = [&](int s, int c) {
            double squares = 0;
            for (int i = 0; i < width; ++i) squares += pooled(s, i) * pooled(s, i);
            return normalizes ? pooled(s, c) / std::sqrt(squares) : pooled(s, c);
          };
          expect_close(out, want, 1e-6, "pool");
          for (int s = 0; s < 3; ++s)  // rows may lie side by side
            for (int c = width; c < out.stride; ++c)
              CHECK(std::memcmp(&out.row(s)[c], &before.row(s)[c], sizeof(float)) == 0);
          bits.check(table, out);
        }
  }
}

void run_on_every_isa(void (*test)(const KernelTable&, SameBits&)) {
  SameBits bits;
  for (const KernelTable* table : tables()) {
    rng.seed(1);
    bits.start();
    test(*table, bits);
  }
}

#define EB_KERNEL(name, arguments)             \
  static_assert(is_tested<&KernelTable::name>, \
                "kernels.inc lists " #name ", so kernel_test.cc must have TEST_KERNEL(" #name ") { ... }");
#include "cpu/kernels.inc"
#undef EB_KERNEL

}  // namespace

// The names of kernels: those alone, for emulators, where all of them take long.
int main(int argc, char** argv) {
  const std::vector<std::string> asked(argv + 1, argv + argc);
  size_t found = 0;
  const auto check_kernel = [&](const char* name, void (*test)(const KernelTable&, SameBits&)) {
    const auto times = std::count(asked.begin(), asked.end(), name);
    found += static_cast<size_t>(times);
    if (asked.empty() || times > 0) run_on_every_isa(test);
  };
#define EB_KERNEL(name, arguments) check_kernel(#name, test_##name);
#include "cpu/kernels.inc"
#undef EB_KERNEL
  CHECK(found == asked.size());
  std::printf("%s checked on %s\n", asked.empty() ? "kernels" : "some kernels", usable_isas());
}
