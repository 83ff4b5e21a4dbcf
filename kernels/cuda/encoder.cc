// The layer loop on a GPU, the twin of cpu/encoder.cc. A batch is cut into slices only where it is very large. A
// slice is one copy to the device, the kernels, and one copy back, all queued on one stream; the host waits once, at
// the end.
//
// Activations between kernels are f16, or s8 codes where a linear has s8 weights; sums, LayerNorm, softmax, pooling and
// the heads are f32. What is queued depends on a batch's sizes only, not on its values, so it is recorded as a CUDA
// graph when a shape comes for the second time, and replayed from then on.
//
// Matrix products are kernels of our own: a library chooses by the number of rows how it sums, and a text's bits would
// depend on its batch.
//
// The residual and what is added to it in f32 would lower the errors by 5 to 35 % (a simulation of the roundings), and
// double the bytes that LayerNorm moves.
#include "engine/encoder.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "base/per_process.h"
#include "base/status.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"
#include "cuda/weights.h"
#include "format/model_file.h"

namespace edgebert {

using cuda::check, cuda::CodeRows, cuda::Device, cuda::DeviceMemory, cuda::fail_after_fork, cuda::find_device;
using cuda::Layer, cuda::LayerNorm, cuda::Linear, cuda::list_devices, cuda::PinnedMemory, cuda::row_stride, cuda::Rows;
using cuda::upload_weights, cuda::UseDevice, cuda::Weights;

namespace {

#if !defined(EDGEBERT_CUDA_SLICE_TOKENS)
#define EDGEBERT_CUDA_SLICE_TOKENS 32768
#endif
// The most of a slice, unless one sequence alone has more: tokens, and floats of token outputs.
constexpr int kSliceTokens = EDGEBERT_CUDA_SLICE_TOKENS;
constexpr int64_t kSliceFloats = int64_t{kSliceTokens} * 2048;

// Tokens are rounded up, with tokens of no sequence, and so is max_seqlen, which only sets how many blocks are started:
// so shapes come again.
constexpr int kTokenStep = 16;
constexpr int kSeqlenStep = 64;
constexpr size_t kMaxGraphs = 64;  // twice the lengths up to 512 of one text

int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Consecutive sequences of a batch, and their rows in token outputs.
struct Slice {
  int first_sequence, num_sequences;
  int first_token, num_tokens;
  int first_out_row, num_out_rows;
};

// What the queued work depends on.
struct Shape {
  int tokens = 0, sequences = 0, max_seqlen = 0;
  int out_rows = 0;    // of token outputs
  int chosen = 0;      // the same where these are at some tokens alone; 0: at all
  unsigned heads = 0;  // a bit for each that is asked for

  size_t rows_of(const Head& head) const { return head.is_per_token() ? out_rows : sequences; }
  bool operator==(const Shape& o) const {
    return std::tie(tokens, sequences, max_seqlen, out_rows, chosen, heads) ==
           std::tie(o.tokens, o.sequences, o.max_seqlen, o.out_rows, o.chosen, o.heads);
  }
};

bool takes_column(const Head& head) { return !head.steps.empty() && head.steps.back().op == HeadStep::Op::kColumn; }

// Of an output's block on the device, [rows][stride] f32: a last step that takes one column does so on the way back.
int block_width(const Head& head) { return takes_column(head) ? head.steps.back().inputs : head.width; }

// Places blocks one after the other; a null base only counts.
class Layout {
 public:
  explicit Layout(unsigned char* base) : base_(base) {}

  template <class T>
  T* place(size_t count) {
    T* at = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
    bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    return at;
  }
  Rows rows(size_t count, int width, cuda::DType dtype) {
    const size_t size = dtype == cuda::DType::kF32 ? sizeof(float) : sizeof(uint16_t);
    return {place<unsigned char>(count * row_stride(width) * size), dtype, row_stride(width)};
  }
  size_t bytes() const { return bytes_; }

 private:
  unsigned char* base_;
  size_t bytes_ = 0;
};

// What goes to the device for a slice. The same on both sides.
struct Inputs {
  int32_t *input_ids, *token_type_ids, *position_ids, *cu_seqlens, *chosen;
  size_t bytes;

  Inputs(unsigned char* base, const Shape& shape) {
    Layout layout(base);
    input_ids = layout.place<int32_t>(shape.tokens);
    token_type_ids = layout.place<int32_t>(shape.tokens);
    position_ids = layout.place<int32_t>(shape.tokens);
    cu_seqlens = layout.place<int32_t>(shape.sequences + 1);
    chosen = layout.place<int32_t>(shape.chosen);
    bytes = layout.bytes();
  }
};

// What comes back: one block for each head asked for, else nullptr. The same on both sides.
struct Outputs {
  std::vector<float*> blocks;
  size_t bytes;

  Outputs(unsigned char* base, const std::vector<Head>& heads, const Shape& shape) {
    Layout layout(base);
    for (size_t i = 0; i < heads.size(); ++i) {
      const size_t count = shape.rows_of(heads[i]) * row_stride(block_width(heads[i]));
      blocks.push_back(shape.heads >> i & 1 ? layout.place<float>(count) : nullptr);
    }
    bytes = layout.bytes();
  }
};

// Activations of a slice.
struct Workspace {
  Rows hidden, projected, qkv, context, inner;  // f16 [tokens]
  CodeRows codes;                               // [tokens], of the next s8 linear's inputs
  Rows chosen;                                  // f16 [chosen]
  float* head[2];                               // of a head's rows, before and after a step
  size_t bytes;

  Workspace(unsigned char* base, const EncoderSpec& spec, const Shape& shape) {
    int attention = 0, inner_size = 0, widest = std::max(spec.hidden_size, spec.embedding_size);
    for (const LayerSpec& layer : spec.layers) {
      attention = std::max(attention, layer.attention_size());
      inner_size = std::max(inner_size, layer.intermediate_size);
    }
    Layout layout(base);
    const auto f16 = [&](int rows, int width) { return layout.rows(rows, width, cuda::DType::kF16); };
    hidden = f16(shape.tokens, spec.hidden_size);
    projected = f16(shape.tokens, widest);
    qkv = f16(shape.tokens, 3 * attention);
    context = f16(shape.tokens, attention);
    inner = f16(shape.tokens, inner_size);
    widest = std::max({widest, attention, inner_size});
    codes = {layout.place<int8_t>(static_cast<size_t>(shape.tokens) * row_stride(widest)), row_stride(widest),
             layout.place<float>(shape.tokens), layout.place<int32_t>(shape.tokens)};
    chosen = f16(shape.chosen, spec.hidden_size);
    size_t head_size = 0;
    for (const Head& h : spec.heads) {
      const size_t rows = h.folds_logits() ? shape.tokens : shape.rows_of(h);
      for (size_t i = 0; i + 1 < h.steps.size(); ++i)
        head_size = std::max(head_size, rows * row_stride(h.steps[i].width));
    }
    for (float*& rows : head) rows = layout.place<float>(head_size);
    bytes = layout.bytes();
  }
};

Rows rows_of(void* data, cuda::DType dtype, int width) { return {data, dtype, row_stride(width)}; }

constexpr Rows kNoRows{nullptr, cuda::DType::kF32, 0};
constexpr CodeRows kNoCodes{nullptr, 0, nullptr, nullptr};

struct Graph {
  Shape shape;
  cudaGraphExec_t exec = nullptr;  // nullptr: seen once, not recorded yet

  explicit Graph(const Shape& s) : shape(s) {}
  ~Graph() {
    if (exec) cudaGraphExecDestroy(exec);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
};

}  // namespace

class Encoder::Impl {
 public:
  Impl(const ModelFile& file, const Device& device) : spec_(file.spec), device_(device) {
    const UseDevice use(device_.index);
    weights_ = upload_weights(file.spec, file.weights);
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    isa_ = "sm_" + std::to_string(device.major) + std::to_string(device.minor) + " " + device.name;
  }
  ~Impl() {
    if (stream_) cudaStreamSynchronize(stream_);
    graphs_.clear();
    if (stream_) cudaStreamDestroy(stream_);
  }

  void run(const eb_batch& batch, const eb_output* outputs, int num_outputs);
  const EncoderSpec& spec() const { return spec_; }
  const char* isa() const { return isa_.c_str(); }
  // Nothing that CUDA gave a process is of use in a child that it forked.
  bool is_another_process() const { return fork_depth() != fork_depth_; }
  size_t workspace_bytes() {
    if (is_another_process()) return 0;
    const std::lock_guard<std::mutex> turn(mutex_);
    return workspace_.bytes() + device_inputs_.bytes() + device_outputs_.bytes() + inputs_.bytes() + outputs_.bytes();
  }

 private:
  struct Pass;

  std::vector<Slice> cut(const eb_batch& batch, unsigned heads) const;
  Shape shape_of(const eb_batch& batch, const Slice& slice, unsigned heads) const;
  void reserve(const Shape& shape);
  void fill_inputs(const eb_batch& batch, const Slice& slice, const Shape& shape) const;
  void start(const Shape& shape);
  void record(Graph& graph) const;
  void queue(const Shape& shape) const;
  void copy_outputs(const Slice& slice, const Shape& shape, const eb_output* outputs, int num_outputs) const;

  bool is_wanted_per_token(size_t head, unsigned heads) const {
    return (heads >> head & 1) && spec_.heads[head].is_per_token();
  }

  const uint32_t fork_depth_ = fork_depth();
  std::mutex mutex_;  // one run after the other
  const EncoderSpec spec_;
  const Device device_;
  std::string isa_;
  Weights weights_;
  cudaStream_t stream_ = nullptr;
  DeviceMemory workspace_, device_inputs_, device_outputs_;
  PinnedMemory inputs_, outputs_;
  Shape largest_;            // of each size the largest seen
  std::list<Graph> graphs_;  // the latest used first
};

// ---- One forward pass of a slice, queued --------------------------------------------------------------------------

struct Encoder::Impl::Pass {
  const Impl& model;
  const Shape& shape;
  const EncoderSpec& spec = model.spec_;
  const Weights& weights = model.weights_;
  const cudaStream_t stream = model.stream_;
  const Inputs in{model.device_inputs_.data(), shape};
  const Outputs out{model.device_outputs_.data(), spec.heads, shape};
  const Workspace w{model.workspace_.data(), spec, shape};

  void queue() {
    embed();
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      layer(weights.layers[i], i + 1 < weights.layers.size() ? &weights.layers[i + 1].qkv : nullptr);
    }
    heads();
  }

  void embed() {
    const bool projects = weights.projection.is_present();
    const Rows embedded = projects ? rows_of(w.projected.data, w.projected.dtype, spec.embedding_size) : w.hidden;
    check(cuda::embed_layernorm({weights.word, weights.position, weights.token_type, weights.embedding_norm,
                                 in.input_ids, in.token_type_ids, in.position_ids, shape.tokens, embedded},
                                stream),
          "embed_layernorm");
    if (projects) linear(weights.projection, embedded, shape.tokens, Activation::kIdentity, w.hidden);
    if (!weights.layers.empty()) quantize_for(weights.layers[0].qkv, w.hidden, shape.tokens);
  }

  // The codes, where the first linear takes codes, are those of the hidden states.
  void layer(const Layer& l, const Linear* next) {
    const Rows projected = rows_of(w.projected.data, w.projected.dtype, spec.hidden_size);
    if (l.num_heads > 0) {
      const Rows qkv = rows_of(w.qkv.data, w.qkv.dtype, 3 * l.attention_size);
      const Rows context = rows_of(w.context.data, w.context.dtype, l.attention_size);
      linear(l.qkv, w.hidden, shape.tokens, Activation::kIdentity, qkv);
      check(cuda::attention_varlen({qkv, in.cu_seqlens, shape.sequences, shape.max_seqlen, l.num_heads, l.head_dim,
                                    context, l.position_bias, spec.max_relative_distance},
                                   stream),
            "attention_varlen");
      quantize_for(l.attention_output, context, shape.tokens);
      linear(l.attention_output, context, shape.tokens, Activation::kIdentity, projected);
    }
    add_layernorm(l.attention_output, projected, l.attention_norm, &l.ffn_up);
    if (l.intermediate_size > 0) {
      const Rows inner = rows_of(w.inner.data, w.inner.dtype, l.intermediate_size);
      linear(l.ffn_up, w.hidden, shape.tokens, spec.activation, inner);
      quantize_for(l.ffn_down, inner, shape.tokens);
      linear(l.ffn_down, inner, shape.tokens, Activation::kIdentity, projected);
    }
    add_layernorm(l.ffn_down, projected, l.ffn_norm, next);
  }

  // Codes of x for `next`, if it takes codes.
  void quantize_for(const Linear& next, const Rows& x, int rows) {
    if (!next.takes_codes()) return;
    check(cuda::quantize_rows({x, rows, next.inputs, next.inv_smooth, codes_for(next)}, stream), "quantize_rows");
  }

  CodeRows codes_for(const Linear& next) const {
    return {w.codes.codes, row_stride(next.inputs), w.codes.a_scale, w.codes.neg_zero};
  }

  // out = activation(x @ weight + bias); an s8 linear reads the codes made for it instead of x.
  void linear(const Linear& l, const Rows& x, int rows, Activation activation, const Rows& to) {
    const int processors = model.device_.num_multiprocessors;
    if (l.takes_codes()) {
      check(cuda::linear_s8({codes_for(l), static_cast<const int8_t*>(l.weight), l.w_scale, l.colsum, l.bias, rows,
                             l.inputs, l.outputs, activation, kNoRows, to, processors},
                            stream),
            "linear_s8");
    } else if (l.kind == Linear::Kind::kF16) {
      check(cuda::linear_f16({x, l.weight, l.bias, rows, l.inputs, l.outputs, activation, kNoRows, to, processors},
                             stream),
            "linear_f16");
    } else {
      check(cuda::linear_f32(
                {x, static_cast<const float*>(l.weight), l.bias, rows, l.inputs, l.outputs, activation, to}, stream),
            "linear_f32");
    }
  }

  // hidden = LayerNorm(hidden + what `from` wrote to `projected`, or its bias), and codes for `next` if it takes codes.
  void add_layernorm(const Linear& from, const Rows& projected, const LayerNorm& norm, const Linear* next) {
    const bool quantize = next && next->takes_codes();
    const Rows bias{const_cast<float*>(from.bias), cuda::DType::kF32, 0};
    check(cuda::add_layernorm({from.is_present() ? projected : bias, w.hidden, norm, shape.tokens, w.hidden,
                               quantize ? codes_for(*next) : kNoCodes, quantize ? next->inv_smooth : nullptr},
                              stream),
          "add_layernorm");
  }

  // ---- Heads ----

  // Choosing tokens moves no rows that are pooled.
  void heads() {
    if (shape.chosen > 0) gather(w.hidden, in.chosen, w.chosen);
    for (size_t i = 0; i < spec.heads.size(); ++i)
      if (out.blocks[i] && shape.rows_of(spec.heads[i]) > 0) run_head(spec.heads[i], out.blocks[i]);
  }

  void gather(const Rows& from, const int32_t* index, const Rows& to) {
    check(cuda::gather_rows(from, index, shape.out_rows, spec.hidden_size, to, stream), "gather_rows");
  }

  // From the hidden states to an output's block. In between, rows are f16 where a product with the vocabulary follows.
  void run_head(const Head& head, float* block) {
    int rows = head.folds_logits() ? shape.tokens : static_cast<int>(shape.rows_of(head));
    const size_t end = head.steps.size() - takes_column(head);
    const Rows to = rows_of(block, cuda::DType::kF32, block_width(head));
    Rows x = shape.chosen > 0 && head.is_per_token() ? w.chosen : w.hidden;
    if (end == 0) return gather(x, nullptr, to);
    for (size_t i = 0, next = 0; i < end; ++i) {
      const HeadStep& step = head.steps[i];
      if (step.op == HeadStep::Op::kLayerNorm) {
        const Linear* after = i + 1 < end && head.steps[i + 1].is_linear() ? &head_linear(head.steps[i + 1]) : nullptr;
        const bool quantize = after && after->takes_codes();
        check(cuda::add_layernorm({x, kNoRows, weights.head_norms.at(step.weights), rows, x,
                                   quantize ? codes_for(*after) : kNoCodes, nullptr},
                                  stream),
              "add_layernorm");
        continue;
      }
      if (step.op == HeadStep::Op::kNormalize) {
        check(cuda::normalize_rows(x, rows, step.width, stream), "normalize_rows");
        continue;
      }
      if (step.op == HeadStep::Op::kLog1pRelu) {
        check(cuda::log1p_relu_rows(x, rows, step.width, stream), "log1p_relu_rows");
        continue;
      }
      const bool is_last = std::none_of(head.steps.begin() + i + 1, head.steps.end(), makes_rows);
      const bool feeds_decoder = head.has_decoder() && step.op == HeadStep::Op::kLinear;
      const cuda::DType dtype = feeds_decoder ? cuda::DType::kF16 : cuda::DType::kF32;
      const Rows y = is_last ? to : rows_of(w.head[next], dtype, step.width);
      if (step.is_pool()) {
        rows = shape.sequences;
        int column = 0;
        for (const Pooling pooling : step.poolings) {
          check(cuda::pool({x, step.inputs, in.cu_seqlens, rows, pooling, column, y}, stream), "pool");
          column += step.inputs;
        }
      } else {
        const bool has_codes = i > 0 && head.steps[i - 1].op == HeadStep::Op::kLayerNorm;
        if (!has_codes) quantize_for(head_linear(step), x, rows);
        linear(head_linear(step), x, rows, step.activation, y);
      }
      x = y;
      next = 1 - next;
    }
  }

  static bool makes_rows(const HeadStep& step) { return step.is_pool() || step.is_linear(); }
  const Linear& head_linear(const HeadStep& step) const { return weights.head_linears.at(step.weights); }
};

// ---- Running ------------------------------------------------------------------------------------------------------

// As few slices of whole sequences as the limits allow.
std::vector<Slice> Encoder::Impl::cut(const eb_batch& batch, unsigned heads) const {
  int64_t slice_tokens = kSliceTokens;
  for (const Head& head : spec_.heads)  // their logits are all there before they are folded
    if (head.folds_logits()) slice_tokens = std::min(slice_tokens, kSliceFloats / head.width);
  int64_t floats_a_row = 0;
  for (size_t i = 0; i < spec_.heads.size(); ++i)
    if (is_wanted_per_token(i, heads)) floats_a_row += row_stride(block_width(spec_.heads[i]));
  std::vector<Slice> slices;
  for (int s = 0, out_row = 0; s < batch.num_sequences; ++s) {
    const int first = batch.cu_seqlens[s], length = batch.cu_seqlens[s + 1] - first;
    int rows = length;
    if (batch.output_tokens) {
      rows = 0;
      while (out_row + rows < batch.num_output_tokens && batch.output_tokens[out_row + rows] < first + length) ++rows;
    }
    if (slices.empty() || slices.back().num_tokens + length > slice_tokens ||
        (slices.back().num_out_rows + rows) * floats_a_row > kSliceFloats) {
      slices.push_back({s, 0, first, 0, out_row, 0});
    }
    ++slices.back().num_sequences;
    slices.back().num_tokens += length;
    slices.back().num_out_rows += rows;
    out_row += rows;
  }
  return slices;
}

Shape Encoder::Impl::shape_of(const eb_batch& batch, const Slice& slice, unsigned heads) const {
  Shape shape;
  shape.tokens = round_up(slice.num_tokens, kTokenStep);
  shape.sequences = slice.num_sequences;
  for (int s = slice.first_sequence; s < slice.first_sequence + slice.num_sequences; ++s)
    shape.max_seqlen = std::max(shape.max_seqlen, batch.cu_seqlens[s + 1] - batch.cu_seqlens[s]);
  shape.max_seqlen = round_up(shape.max_seqlen, kSeqlenStep);
  shape.heads = heads;
  for (size_t i = 0; i < spec_.heads.size(); ++i) {
    if (!is_wanted_per_token(i, heads)) continue;
    shape.chosen = batch.output_tokens ? slice.num_out_rows : 0;
    shape.out_rows = batch.output_tokens ? shape.chosen : shape.tokens;
  }
  return shape;
}

// Room for a slice of that shape. Each size grows by itself, so that memory is flat once the largest of each was seen.
void Encoder::Impl::reserve(const Shape& shape) {
  Shape& l = largest_;
  l.tokens = std::max(l.tokens, shape.tokens);
  l.sequences = std::max(l.sequences, shape.sequences);
  l.out_rows = std::max(l.out_rows, shape.out_rows);
  l.chosen = std::max(l.chosen, shape.chosen);
  l.heads |= shape.heads;
  const size_t input_bytes = Inputs(nullptr, l).bytes, output_bytes = Outputs(nullptr, spec_.heads, l).bytes;
  const auto grow = [this](auto& memory, size_t bytes) {
    if (bytes <= memory.bytes()) return;
    graphs_.clear();  // they hold addresses
    memory = {};
    memory = std::decay_t<decltype(memory)>(bytes);
  };
  grow(workspace_, Workspace(nullptr, spec_, l).bytes);
  grow(device_inputs_, input_bytes);
  grow(inputs_, input_bytes);
  grow(device_outputs_, output_bytes);
  grow(outputs_, output_bytes);
}

// Ids, positions and bounds; tokens beyond the last are of no sequence, and nobody looks at their rows.
void Encoder::Impl::fill_inputs(const eb_batch& batch, const Slice& slice, const Shape& shape) const {
  const Inputs in(inputs_.data(), shape);
  std::memset(inputs_.data(), 0, in.bytes);
  std::copy_n(batch.input_ids + slice.first_token, slice.num_tokens, in.input_ids);
  if (batch.token_type_ids) std::copy_n(batch.token_type_ids + slice.first_token, slice.num_tokens, in.token_type_ids);
  for (int s = 0; s < slice.num_sequences; ++s) {
    const int first = batch.cu_seqlens[slice.first_sequence + s] - slice.first_token;
    const int last = batch.cu_seqlens[slice.first_sequence + s + 1] - slice.first_token;
    spec_.find_positions(in.input_ids + first, last - first, in.position_ids + first);
    in.cu_seqlens[s + 1] = last;
  }
  for (int i = 0; i < shape.chosen; ++i)
    in.chosen[i] = batch.output_tokens[slice.first_out_row + i] - slice.first_token;
}

void Encoder::Impl::queue(const Shape& shape) const {
  const size_t input_bytes = Inputs(nullptr, shape).bytes, output_bytes = Outputs(nullptr, spec_.heads, shape).bytes;
  check(cudaMemcpyAsync(device_inputs_.data(), inputs_.data(), input_bytes, cudaMemcpyHostToDevice, stream_),
        "copying the batch");
  Pass{*this, shape}.queue();
  check(cudaMemcpyAsync(outputs_.data(), device_outputs_.data(), output_bytes, cudaMemcpyDeviceToHost, stream_),
        "copying the outputs");
}

void Encoder::Impl::record(Graph& graph) const {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  try {
    queue(graph.shape);
  } catch (...) {
    cudaStreamEndCapture(stream_, &recorded);
    if (recorded) cudaGraphDestroy(recorded);
    throw;
  }
  check(cudaStreamEndCapture(stream_, &recorded), "cudaStreamEndCapture");
  const cudaError_t error = cudaGraphInstantiate(&graph.exec, recorded, 0);
  cudaGraphDestroy(recorded);
  check(error, "cudaGraphInstantiate");
}

void Encoder::Impl::start(const Shape& shape) {
  const auto found =
      std::find_if(graphs_.begin(), graphs_.end(), [&](const Graph& graph) { return graph.shape == shape; });
  if (found == graphs_.end()) {
    if (graphs_.size() == kMaxGraphs) graphs_.pop_back();
    graphs_.emplace_front(shape);
    return queue(shape);
  }
  graphs_.splice(graphs_.begin(), graphs_, found);
  if (!found->exec) record(*found);
  check(cudaGraphLaunch(found->exec, stream_), "cudaGraphLaunch");
}

void Encoder::Impl::copy_outputs(const Slice& slice, const Shape& shape, const eb_output* outputs,
                                 int num_outputs) const {
  const Outputs from(outputs_.data(), spec_.heads, shape);
  for (int o = 0; o < num_outputs; ++o) {
    const Head* head = spec_.find_head(outputs[o].name);
    const size_t width = head->width, stride = row_stride(block_width(*head));
    const float* block = from.blocks[head - spec_.heads.data()] + (takes_column(*head) ? head->steps.back().column : 0);
    const int first = head->is_per_token() ? slice.first_out_row : slice.first_sequence;
    const int rows = head->is_per_token() ? slice.num_out_rows : slice.num_sequences;
    for (int r = 0; r < rows; ++r) {
      std::memcpy(outputs[o].data + (static_cast<size_t>(first) + r) * width, block + r * stride,
                  sizeof(float) * width);
    }
  }
}

void Encoder::Impl::run(const eb_batch& batch, const eb_output* outputs, int num_outputs) {
  if (is_another_process()) fail_after_fork();
  const std::lock_guard<std::mutex> turn(mutex_);
  unsigned heads = 0;
  for (int o = 0; o < num_outputs; ++o) heads |= 1u << (spec_.find_head(outputs[o].name) - spec_.heads.data());
  const UseDevice use(device_.index);
  struct Finish {  // also where an error ends the run early: what is queued reads and writes the buffers
    cudaStream_t stream;
    ~Finish() { cudaStreamSynchronize(stream); }
  } finish{stream_};
  for (const Slice& slice : cut(batch, heads)) {
    const Shape shape = shape_of(batch, slice, heads);
    reserve(shape);
    fill_inputs(batch, slice, shape);
    start(shape);
    check(cudaStreamSynchronize(stream_), "running the kernels");
    copy_outputs(slice, shape, outputs, num_outputs);
  }
}

void Encoder::require(const eb_options& options) { find_device(options.device); }
Encoder::Encoder(const ModelFile& file, const eb_options& options)
    : impl_(std::make_unique<Impl>(file, find_device(options.device))) {}
Encoder::~Encoder() {
  if (impl_->is_another_process()) impl_.release();  // CUDA would refuse to free it
}
void Encoder::run(const eb_batch& batch, const eb_output* outputs, int num_outputs) {
  impl_->run(batch, outputs, num_outputs);
}
const EncoderSpec& Encoder::spec() const { return impl_->spec(); }
const char* Encoder::isa() const { return impl_->isa(); }
int Encoder::num_threads() const { return 1; }
size_t Encoder::workspace_bytes() const { return impl_->workspace_bytes(); }

const char* Encoder::built_isas() { return EDGEBERT_CUDA_ARCHITECTURES; }
const char* Encoder::usable_isas() {
  static const std::string names = list_devices();
  return names.c_str();
}
int Encoder::default_threads() { return 1; }

}  // namespace edgebert
