// The layer loop. A batch is cut into micro-batches whose activations fit a core's cache. Each runs on one thread from
// embedding to output; those left over when every thread has had equally many run on all threads together.
//
// Between two attentions each row is computed by itself: context, output linear, LayerNorm, the two linears of the FFN,
// LayerNorm, the next layer's qkv, turned by its position where positions are rotary. A block of rows goes through all
// of these at once, its wide activations in a buffer of the thread's own. Threads share out the blocks and wait for one
// another twice a layer; where there are too few rows for that, they share out the columns of each linear instead.
// At an exit texts that are sure leave, and the rows of the others close up.
#include "engine/encoder.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "base/arena.h"
#include "base/per_process.h"
#include "base/platform.h"
#include "base/status.h"
#include "base/thread_pool.h"
#include "cpu/cpu_features.h"
#include "cpu/dispatch.h"
#include "cpu/kernel_table.h"
#include "cpu/pack.h"
#include "format/model_file.h"

namespace edgebert {
namespace {

constexpr int kMicroBatchTokens = 96;    // at most, of short sequences that run on one thread together
constexpr int kShortRunTokens = 192;     // on one thread some 1 ms, of a small model
constexpr int kHeadRows = 24;            // that a head computes at once: they may be as wide as the vocabulary
constexpr int kFoldColumns = 1024;       // of logits that are folded at once, of a block of rows
static_assert(kHeadRows <= kBlockRows);  // their codes lie in a block's

// With fewer rows for each thread than this, threads share out a linear's columns instead of rows: its weights are then
// read once instead of once by every thread, but threads wait for one another at every step. Large weights are worth
// that up to more rows.
constexpr int kFewRows = 4;
constexpr int kFewRowsOfLargeLayers = 12;
constexpr size_t kLargeLayer = size_t{4} << 20;  // bytes of weights

Epilogue epilogue_of(Activation activation) {
  switch (activation) {
    case Activation::kGeluErf:
      return Epilogue::kGeluErf;
    case Activation::kGeluTanh:
      return Epilogue::kGeluTanh;
    case Activation::kRelu:
      return Epilogue::kRelu;
    case Activation::kTanh:
      return Epilogue::kTanh;
    case Activation::kSilu:
      return Epilogue::kSilu;
    case Activation::kIdentity:
      break;
  }
  return Epilogue::kBias;
}

Fold fold_of(Pooling pooling) {
  switch (pooling) {
    case Pooling::kMean:
      return Fold::kMean;
    case Pooling::kCls:
      return Fold::kFirst;
    case Pooling::kMax:
      return Fold::kMax;
    case Pooling::kMeanSqrtLen:
      return Fold::kMeanSqrtLen;
    case Pooling::kWeightedMean:
      return Fold::kWeightedMean;
    case Pooling::kLast:
      return Fold::kLast;
    case Pooling::kSum:
      break;
  }
  return Fold::kSum;
}

// log(1 + max(x, 0)) in place, rounded to f32 once, so that every ISA gives the same bits.
void log1p_relu(float* x, int count) {
  for (int i = 0; i < count; ++i) x[i] = x[i] <= 0 ? 0.0f : static_cast<float>(std::log1p(static_cast<double>(x[i])));
}

// A linear packed for the ISA: s8 or f32 weights, or (a pruned-away sub-block) only a bias.
struct Linear {
  enum class Kind { kAbsent, kBiasOnly, kF32, kS8 } kind = Kind::kAbsent;
  PackedLinearU8S8 s8{};
  PackedLinearF32 f32{};
  const float* bias_row = nullptr;
  const float* inv_smooth = nullptr;

  bool takes_codes() const { return kind == Kind::kS8; }
  size_t weight_bytes() const {
    if (!has_weight()) return 0;
    return static_cast<size_t>(inputs()) * outputs() * (takes_codes() ? sizeof(int8_t) : sizeof(float));
  }
  bool has_weight() const { return kind == Kind::kF32 || kind == Kind::kS8; }
  // The linear of its outputs from `first` on, a multiple of nr, `count` at most.
  Linear columns(int first, int count) const {
    Linear part = *this;
    if (takes_codes()) {
      part.s8.weight += static_cast<size_t>(round_up(s8.inputs, 4)) * first;
      part.s8.w_scale += first;
      part.s8.colsum += first;
      part.s8.bias += first;
      part.s8.outputs = std::min(count, s8.outputs - first);
    } else {
      part.f32.weight += static_cast<size_t>(f32.inputs) * first;
      part.f32.bias += first;
      part.f32.outputs = std::min(count, f32.outputs - first);
    }
    return part;
  }
  int inputs() const { return takes_codes() ? s8.inputs : f32.inputs; }
  int outputs() const { return takes_codes() ? s8.outputs : f32.outputs; }
};

// Cosines and sines of the angles by which positions turn the pairs of a head, [position][row_stride(head_dim / 2)].
struct RotaryTable {
  double base;
  int head_dim;
  int positions = 0;  // so many are there
  AlignedBytes memory;

  int stride() const { return row_stride(head_dim / 2); }
  const float* cosines() const { return reinterpret_cast<const float*>(memory.get()); }
  const float* sines() const { return cosines() + static_cast<size_t>(positions) * stride(); }
};

struct Layer {
  int num_heads, head_dim, attention_size, intermediate_size, window;
  int rotary_table;  // in Desk::rotary_tables; -1: none
  Linear qkv, attention_output, ffn_up, ffn_down;
  LayerNormWeights attention_norm, ffn_norm;  // a width of 0: none
  // Of AttentionArgs.
  const float* position_bias;
  const float *position_keys, *position_queries;

  size_t weight_bytes() const {
    return qkv.weight_bytes() + attention_output.weight_bytes() + ffn_up.weight_bytes() + ffn_down.weight_bytes();
  }
};

// Consecutive sequences of a batch, with their token and sequence offsets in it.
struct Slice {
  int first_sequence, num_sequences;
  int first_token, num_tokens;
};

// Activations of a slice, and the buffers of a block for each thread. Sizes only grow, each on its own, so memory stays
// as it is once the largest of each was seen.
struct Workspace {
  AlignedBytes memory;
  size_t capacity = 0;  // bytes
  int tokens = 0, sequences = 0, max_seqlen = 0;

  float *hidden, *qkv, *context;    // [tokens]
  float *projected, *ffn, *normed;  // [threads * kBlockRows]
  CodeRows codes;                   // [threads * kBlockRows]
  float* head[2];                   // [kHeadRows], or of logits to be folded [kBlockRows], before and after a step
  float* fold;                      // [threads * kBlockRows][kFoldColumns]
  int32_t *cu_seqlens, *position_ids;
  int32_t* num_keys;  // of AttentionArgs
  float* scratch;     // of attention, [threads][scratch_stride]
  size_t scratch_stride;
  // Of a model with exits. Its rows are texts, or tokens where these have logits.
  int32_t* places;  // the output's row for each; -1: none
  float* margins;   // of each row's logits at an exit
  struct Left {
    std::atomic<int> sequences, tokens;
  };
  std::vector<Left> left;  // after each exit; a thread may come to one when others are further
};

// Rows of a slice on their way from one attention to the next, and the buffers they use there.
struct Rows {
  int first, count;
  float *projected, *ffn;
  float* normed;  // in a pre-norm model, what a sub-block reads instead of the hidden states
  CodeRows codes;
};

CodeRows offset_rows(const CodeRows& codes, int rows) {
  return {codes.codes + static_cast<size_t>(rows) * codes.stride, codes.stride, codes.a_scale + rows,
          codes.neg_zero + rows, codes.flip};
}

}  // namespace

class Encoder::Impl {
 public:
  Impl(const EncoderSpec& spec, const EncoderWeights& weights, const KernelTable& kernels, int num_threads);
  void run(const eb_batch& batch, const eb_output* outputs, int num_outputs);
  const EncoderSpec& spec() const { return spec_; }
  const char* isa() const { return kernels_.isa; }
  int num_threads() const { return num_threads_; }
  size_t workspace_bytes() { return workplace().bytes; }

 private:
  struct Loader;
  struct Pass;

  // What a run writes to, made when a run is the first at its place and used again by later ones.
  struct Desk {
    std::vector<Workspace> workspaces;  // the team's, then each thread's own
    std::vector<Slice> slices;
    std::vector<RotaryTable> rotary_tables;  // for positions up to that of the longest sequence so far
  };
  // All that changes of a model: what runs of several threads at once need.
  struct Workplace {
    explicit Workplace(int num_threads) : pool(num_threads), desks(static_cast<size_t>(num_threads)) {}

    ThreadPool pool;
    std::vector<std::unique_ptr<Desk>> desks;  // by the place of a turn
    std::atomic<size_t> bytes{0};              // of all workspaces and rotary tables
  };

  Workplace& workplace() {
    return workplace_.get([this] { return std::make_unique<Workplace>(num_threads_); });
  }
  void place(Workspace& workspace, const eb_batch& batch, const Slice& slice) const;
  static size_t bytes_of(const RotaryTable& table, int positions) {
    return 2 * sizeof(float) * static_cast<size_t>(positions) * table.stride();
  }
  // Of the position tables: an odd number of vectors, since lines a power of two apart fall on few places of a cache.
  int position_stride() const { return row_stride(spec_.num_position_rows()) | kRowAlign; }
  void reserve(RotaryTable& table, int positions);
  void reserve(Workspace& workspace, int tokens, int sequences, int max_seqlen, int threads);

  const EncoderSpec spec_;
  const KernelTable& kernels_;
  const int num_threads_;
  Arena arena_;
  EmbedArgs embed_{};
  Linear projection_;
  std::vector<Layer> layers_;
  LayerNormWeights final_norm_{};
  std::vector<std::pair<double, int>> rotations_;  // base and head_dim of each table
  std::map<std::string, Linear> head_linears_;     // by the name of their tensors
  std::map<std::string, LayerNormWeights> head_norms_;
  size_t head_floats_[2] = {0, 0};  // of Workspace::head
  bool folds_logits_ = false;       // as some head does
  PerProcess<Workplace> workplace_;
  int max_width_ = 0;  // widest row that is ever quantized
  int max_ffn_width_ = 0;
  int few_rows_ = kFewRows;  // a thread
};

// ---- Loading ----------------------------------------------------------------------------------------------------

struct Encoder::Impl::Loader {
  Impl& to;
  const EncoderWeights& weights;

  const TensorView& tensor(const std::string& name) const {
    const TensorView* found = weights.find(name);
    if (!found) throw Error(EB_INTERNAL, "weight " + name + " is missing although the file was checked");
    return *found;
  }

  Linear linear(const std::string& prefix) const {
    Linear linear;
    const TensorView* bias = weights.find(prefix + ".bias");
    if (!bias) return linear;
    const TensorView* weight = weights.find(prefix + ".weight");
    if (!weight) {
      linear.kind = Linear::Kind::kBiasOnly;
      const int width = static_cast<int>(bias->shape[0]);
      linear.bias_row = copy_f32(*bias, row_stride(width), to.arena_);
    } else if (weight->dtype == DType::kS8) {
      linear.kind = Linear::Kind::kS8;
      linear.s8 =
          pack_linear_u8s8(*weight, tensor(prefix + ".scale"), tensor(prefix + ".colsum"), *bias,
                           WeightLayout::kInputsByOutputs, to.kernels_.s8_nr, to.kernels_.narrow_offset, to.arena_);
      if (const TensorView* inv_smooth = weights.find(prefix + ".inv_smooth"))
        linear.inv_smooth = copy_f32(*inv_smooth, linear.s8.inputs, to.arena_);
    } else {
      linear.kind = Linear::Kind::kF32;
      linear.f32 = pack_linear_f32(*weight, *bias, WeightLayout::kInputsByOutputs, to.kernels_.f32_nr, to.arena_);
    }
    if (linear.takes_codes()) to.max_width_ = std::max(to.max_width_, linear.s8.inputs);
    return linear;
  }

  // The tied decoder: the word table, transposed, with the table's row scales as output scales.
  Linear decoder(const std::string& prefix) const {
    Linear linear;
    const TensorView& word = tensor("embeddings.word.weight");
    if (word.dtype == DType::kS8) {
      linear.kind = Linear::Kind::kS8;
      linear.s8 =
          pack_linear_u8s8(word, tensor("embeddings.word.scale"), tensor(prefix + ".colsum"), tensor(prefix + ".bias"),
                           WeightLayout::kOutputsByInputs, to.kernels_.s8_nr, to.kernels_.narrow_offset, to.arena_);
      to.max_width_ = std::max(to.max_width_, linear.s8.inputs);
    } else {
      linear.kind = Linear::Kind::kF32;
      linear.f32 = pack_linear_f32(word, tensor(prefix + ".bias"), WeightLayout::kOutputsByInputs, to.kernels_.f32_nr,
                                   to.arena_);
    }
    return linear;
  }

  LayerNormWeights layer_norm(const std::string& prefix) const {
    const TensorView& weight = tensor(prefix + ".weight");
    const int width = static_cast<int>(weight.shape[0]);
    return {copy_f32(weight, width, to.arena_), copy_f32(tensor(prefix + ".bias"), width, to.arena_), width,
            to.spec_.layer_norm_eps};
  }

  const float* position_bias(const std::string& name) const {
    const TensorView* found = weights.find(name);
    return found ? copy_f32(*found, found->num_bytes / sizeof(float), to.arena_) : nullptr;
  }

  // [heads][head_dim][Impl::position_stride()], zeros in the padding.
  const float* position_table(const std::string& name) const {
    const TensorView* found = weights.find(name);
    if (!found) return nullptr;
    const size_t lines = static_cast<size_t>(found->shape[0] * found->shape[1]), num_rows = found->shape[2];
    const size_t stride = to.position_stride();
    float* const table = to.arena_.allocate<float>(lines * stride);
    std::memset(table, 0, lines * stride * sizeof(float));
    for (size_t i = 0; i < lines; ++i)
      std::memcpy(table + i * stride, found->data + i * num_rows * sizeof(float), num_rows * sizeof(float));
    return table;
  }

  // Layers of one base share a table.
  int rotary_table(const LayerSpec& layer) const {
    if (layer.rotary_base == 0 || layer.num_heads == 0) return -1;
    const std::pair<double, int> rotation{layer.rotary_base, layer.head_dim};
    const auto found = std::find(to.rotations_.begin(), to.rotations_.end(), rotation);
    const auto index = found - to.rotations_.begin();
    if (found == to.rotations_.end()) to.rotations_.push_back(rotation);
    return static_cast<int>(index);
  }

  EmbeddingTable table(const std::string& name) const {
    const TensorView& weight = tensor("embeddings." + name + ".weight");
    const size_t rows = static_cast<size_t>(weight.shape[0]), width = static_cast<size_t>(weight.shape[1]);
    if (weight.dtype == DType::kF32) return {copy_f32(weight, rows * width, to.arena_), nullptr, nullptr};
    return {nullptr, copy_s8(weight, to.arena_), copy_f32(tensor("embeddings." + name + ".scale"), rows, to.arena_)};
  }

  void load() {
    const EncoderSpec& spec = to.spec_;
    to.arena_.reserve(weights.num_bytes());
    to.embed_.word = table("word");
    if (spec.has_position_table) to.embed_.position = table("position");
    to.embed_.num_token_types = spec.num_token_types;
    if (spec.num_token_types) to.embed_.token_type = table("token_type");
    to.embed_.norm = layer_norm("embeddings.layer_norm");
    to.projection_ = linear("embeddings.projection");
    for (size_t i = 0; i < spec.layers.size(); ++i) {
      const LayerSpec& sizes = spec.layers[i];
      to.max_ffn_width_ = std::max(to.max_ffn_width_, sizes.intermediate_size * (spec.is_gated ? 2 : 1));
      const std::string prefix = "layer." + std::to_string(i) + ".";
      const Layer layer{sizes.num_heads,
                        sizes.head_dim,
                        sizes.attention_size(),
                        sizes.intermediate_size,
                        sizes.window,
                        rotary_table(sizes),
                        linear(prefix + "attention.qkv"),
                        linear(prefix + "attention.output"),
                        linear(prefix + "ffn.up"),
                        linear(prefix + "ffn.down"),
                        sizes.has_attention_norm ? layer_norm(prefix + "attention.layer_norm") : LayerNormWeights{},
                        layer_norm(prefix + "ffn.layer_norm"),
                        position_bias(prefix + "attention.position_bias"),
                        position_table(prefix + "attention.position_keys"),
                        position_table(prefix + "attention.position_queries")};
      to.layers_.insert(to.layers_.end(), sizes.repeats, layer);
      if (to.layers_.back().weight_bytes() > kLargeLayer) to.few_rows_ = kFewRowsOfLargeLayers;
    }
    if (spec.is_pre_norm) to.final_norm_ = layer_norm("final.layer_norm");
    for (const Head& each : spec.heads) head(each);
    for (const Exit& exit : spec.exits) head(exit.head);
  }

  void head(const Head& head) const {
    int at = 0;  // each step that makes new rows writes to the other buffer
    for (const HeadStep& step : head.steps) {
      if (step.op == HeadStep::Op::kLayerNorm) to.head_norms_[step.weights] = layer_norm(step.weights);
      if (step.is_linear() && to.head_linears_.count(step.weights) == 0) {
        to.head_linears_[step.weights] =
            step.op == HeadStep::Op::kDecoder ? decoder(step.weights) : linear(step.weights);
      }
      if (!step.is_linear() && !step.is_pool()) continue;
      if (head.folds_logits() && step.op == HeadStep::Op::kDecoder) break;  // its rows are never all there
      const size_t rows = head.folds_logits() ? kBlockRows : kHeadRows;
      to.head_floats_[at] = std::max(to.head_floats_[at], rows * row_stride(step.width));
      at = 1 - at;
    }
    to.folds_logits_ = to.folds_logits_ || head.folds_logits();
  }
};

Encoder::Impl::Impl(const EncoderSpec& spec, const EncoderWeights& weights, const KernelTable& kernels, int num_threads)
    : spec_(spec), kernels_(kernels), num_threads_(num_threads) {
  Loader{*this, weights}.load();
}

// ---- Workspace --------------------------------------------------------------------------------------------------

void Encoder::Impl::reserve(Workspace& workspace, int tokens, int sequences, int max_seqlen, int threads) {
  tokens = std::max({workspace.tokens, tokens, kMicroBatchTokens});  // so that small batches make it grow once
  sequences = std::max(workspace.sequences, sequences);
  max_seqlen = std::max(workspace.max_seqlen, max_seqlen);
  int attention = 0, head_dim = 0;
  for (const Layer& layer : layers_) {
    attention = std::max(attention, layer.attention_size);
    if (layer.num_heads) head_dim = std::max(head_dim, layer.head_dim);
  }
  const int projected = std::max(spec_.hidden_size, spec_.embedding_size);
  size_t total = 0;
  const auto place = [&total](size_t bytes) {
    const size_t at = total;
    total += (bytes + kSlackFloats * sizeof(float) + 63) / 64 * 64;
    return at;
  };
  const auto rows = [&place](size_t count, int width) { return place(count * row_stride(width) * sizeof(float)); };
  const size_t at_hidden = rows(tokens, spec_.hidden_size), at_qkv = rows(tokens, 3 * attention),
               at_context = rows(tokens, attention);
  const size_t at_head[2] = {place(head_floats_[0] * sizeof(float)), place(head_floats_[1] * sizeof(float))};
  const size_t block_rows = static_cast<size_t>(threads) * kBlockRows;
  const size_t at_fold = rows(folds_logits_ ? block_rows : 0, kFoldColumns);
  const int codes_stride = round_up(max_width_, 64);
  const size_t at_projected = rows(block_rows, projected), at_ffn = rows(block_rows, max_ffn_width_),
               at_normed = rows(spec_.is_pre_norm ? block_rows : 0, spec_.hidden_size),
               at_codes = place(block_rows * codes_stride), at_scale = place(block_rows * sizeof(float)),
               at_zero = place(block_rows * sizeof(int32_t)), at_seqlens = place((sequences + 1) * sizeof(int32_t)),
               at_positions = place(tokens * sizeof(int32_t)),
               at_keys = place(spec_.unattended_id < 0 ? 0 : sequences * sizeof(int32_t));
  const size_t exit_rows = spec_.exits.empty() ? 0 : static_cast<size_t>(tokens);
  const size_t at_places = place(exit_rows * sizeof(int32_t)), at_margins = place(exit_rows * sizeof(float));
  const size_t scratch_stride = (attention_scratch(max_seqlen, head_dim, spec_.num_position_rows()) + 15) / 16 * 16;
  const size_t at_scratch = place(scratch_stride * threads * sizeof(float));

  if (total > workspace.capacity) {
    std::atomic<size_t>& bytes = workplace().bytes;
    bytes -= workspace.capacity;
    workspace.memory.reset();
    workspace.capacity = 0;
    workspace.memory = allocate_aligned(total, 64);
    workspace.capacity = total;
    bytes += total;
    workspace.tokens = tokens;
    workspace.sequences = sequences;
    workspace.max_seqlen = max_seqlen;
    std::memset(workspace.memory.get(), 0, total);  // touch every page now, so that memory is flat from here on
  }
  unsigned char* base = workspace.memory.get();
  const auto floats = [base](size_t at) { return reinterpret_cast<float*>(base + at); };
  const auto ints = [base](size_t at) { return reinterpret_cast<int32_t*>(base + at); };
  workspace.hidden = floats(at_hidden);
  workspace.qkv = floats(at_qkv);
  workspace.context = floats(at_context);
  workspace.projected = floats(at_projected);
  workspace.ffn = floats(at_ffn);
  workspace.normed = floats(at_normed);
  for (int i = 0; i < 2; ++i) workspace.head[i] = floats(at_head[i]);
  workspace.fold = floats(at_fold);
  workspace.codes = {base + at_codes, codes_stride, floats(at_scale), ints(at_zero), kernels_.code_flip};
  workspace.cu_seqlens = ints(at_seqlens);
  workspace.position_ids = ints(at_positions);
  workspace.num_keys = spec_.unattended_id < 0 ? nullptr : ints(at_keys);
  workspace.scratch = floats(at_scratch);
  workspace.scratch_stride = scratch_stride;
  workspace.places = ints(at_places);
  workspace.margins = floats(at_margins);
  if (workspace.left.empty()) workspace.left = std::vector<Workspace::Left>(spec_.exits.size());
}

// Room for `positions`, whose values do not depend on how many there are: numpy_ops.rotary_table is their oracle.
void Encoder::Impl::reserve(RotaryTable& table, int positions) {
  if (positions <= table.positions) return;
  positions = round_up(positions, 512);  // so that texts that are longer and longer make it grow seldom
  AlignedBytes memory = allocate_aligned(bytes_of(table, positions), 64);
  const int stride = table.stride();
  auto* const cosines = reinterpret_cast<float*>(memory.get());
  float* const sines = cosines + static_cast<size_t>(positions) * stride;
  std::memset(cosines, 0, bytes_of(table, positions));
  for (int j = 0; j < table.head_dim / 2; ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(table.head_dim);
    const float frequency = 1.0f / static_cast<float>(std::pow(table.base, static_cast<double>(exponent)));
    for (int t = 0; t < positions; ++t) {
      const double angle = static_cast<float>(t) * frequency;
      cosines[static_cast<size_t>(t) * stride + j] = static_cast<float>(std::cos(angle));
      sines[static_cast<size_t>(t) * stride + j] = static_cast<float>(std::sin(angle));
    }
  }
  workplace().bytes += bytes_of(table, positions) - bytes_of(table, table.positions);
  table.memory = std::move(memory);
  table.positions = positions;
}

// Where each sequence of the slice begins, each token's row of the position table, and how many are attended to.
void Encoder::Impl::place(Workspace& workspace, const eb_batch& batch, const Slice& slice) const {
  for (int s = 0; s <= slice.num_sequences; ++s)
    workspace.cu_seqlens[s] = batch.cu_seqlens[slice.first_sequence + s] - slice.first_token;
  for (int s = 0; s < slice.num_sequences; ++s) {
    const int first = workspace.cu_seqlens[s];
    spec_.find_positions(batch.input_ids + slice.first_token + first, workspace.cu_seqlens[s + 1] - first,
                         workspace.position_ids + first);
    if (workspace.num_keys)
      workspace.num_keys[s] =
          spec_.count_keys(batch.input_ids + slice.first_token + first, workspace.cu_seqlens[s + 1] - first);
  }
  if (spec_.exits.empty()) return;
  const bool per_token = spec_.exits[0].head.is_per_token();
  const int first = per_token ? slice.first_token : slice.first_sequence;
  const int count = per_token ? slice.num_tokens : slice.num_sequences;
  std::iota(workspace.places, workspace.places + count, first);
  if (!per_token || batch.output_tokens == nullptr) return;
  const int32_t* const end = batch.output_tokens + batch.num_output_tokens;
  const int32_t* chosen = std::lower_bound(batch.output_tokens, end, first);
  for (int r = 0; r < count; ++r) {
    const bool is_chosen = chosen != end && *chosen == first + r;
    workspace.places[r] = is_chosen ? static_cast<int>(chosen++ - batch.output_tokens) : -1;
  }
}

// ---- One forward pass of a slice, on a team -----------------------------------------------------------------------

struct Encoder::Impl::Pass {
  const Impl& model;
  Team& team;
  Workspace& w;
  const std::vector<RotaryTable>& rotary_tables;
  const eb_batch& batch;
  const Slice slice;
  const eb_output* outputs;
  const int num_outputs;

  const EncoderSpec& spec = model.spec_;
  const KernelTable& kernels = model.kernels_;
  int tokens = slice.num_tokens;            // after the last attention: rows that an output asks for
  int num_sequences = slice.num_sequences;  // that have not left
  const int hidden_stride = row_stride(spec.hidden_size);
  int out_rows = slice.num_tokens, first_out_row = slice.first_token;  // of token outputs
  bool is_chosen = false;

  void run() {
    const int num_layers = static_cast<int>(model.layers_.size());
    size_t num_exits = 0;
    over_rows([&](Team& t, const Rows& r) {
      embed(t, r);
      if (num_layers) qkv(t, r, model.layers_[0]);
    });
    for (int i = 0; i < num_layers; ++i) {
      if (model.layers_[i].num_heads) attention(model.layers_[i]);
      const Layer* next = i + 1 < num_layers ? &model.layers_[i + 1] : nullptr;
      if (!next) keep_rows();
      const bool is_exit = num_exits < spec.exits.size() && spec.exits[num_exits].after == i + 1;
      over_rows([&](Team& t, const Rows& r) {
        after_attention(t, r, model.layers_[i]);
        if (next && !is_exit) qkv(t, r, *next);
      });
      if (!is_exit) continue;
      leave(num_exits++);
      if (num_sequences == 0) return;
      over_rows([&](Team& t, const Rows& r) {
        quantize_for(t, r, next->qkv, hidden(r), hidden_stride);
        qkv(t, r, *next);
      });
    }
    heads();
  }

  // Calls body(team, rows) for blocks of rows of like size, equally many for each thread; or, where a thread would get
  // too few, for all rows on the whole team, whose steps then share out columns.
  template <class Body>
  void over_rows(Body body) {
    // How many rows leave is not known while steps are counted: sharing out columns has more of them.
    const bool may_be_few = team.is_counting() && !spec.exits.empty();
    if (team.size() > 1 && (may_be_few || tokens < model.few_rows_ * team.size()))
      return body(team, rows_at(0, tokens, 0));
    const int blocks = round_up((tokens + kBlockRows - 1) / kBlockRows, team.size());
    const auto first_row = [&](int block) { return static_cast<int>(static_cast<int64_t>(tokens) * block / blocks); };
    team.share(
        blocks,
        [&](int begin, int end) {
          Team alone;
          for (int b = begin; b < end; ++b)
            body(alone, rows_at(first_row(b), first_row(b + 1) - first_row(b), team.rank()));
        },
        1);
  }

  Rows rows_at(int first, int count, int rank) const {
    const size_t block = static_cast<size_t>(rank) * kBlockRows;
    return {first,
            count,
            w.projected + block * row_stride(std::max(spec.hidden_size, spec.embedding_size)),
            w.ffn + block * ffn_stride(),
            w.normed + block * hidden_stride,
            offset_rows(w.codes, rank * kBlockRows)};
  }
  int ffn_stride() const { return row_stride(model.max_ffn_width_); }
  float* hidden(const Rows& r) const { return w.hidden + static_cast<size_t>(r.first) * hidden_stride; }

  void embed(Team& t, const Rows& r) {
    EmbedArgs args = model.embed_;
    const int first = slice.first_token + r.first;
    args.input_ids = batch.input_ids + first;
    args.token_type_ids = batch.token_type_ids ? batch.token_type_ids + first : nullptr;
    args.position_ids = w.position_ids + r.first;
    args.out = model.projection_.has_weight() ? r.projected : hidden(r);
    args.out_stride = row_stride(spec.embedding_size);
    t.share(r.count, [&](int begin, int end) { kernels.embed_layernorm(args, begin, end); });
    if (model.projection_.has_weight())
      linear(t, model.projection_, r.codes, args.out, args.out_stride, r.count, Epilogue::kBias, hidden(r),
             hidden_stride);
    if (spec.is_pre_norm && (model.layers_.empty() || model.layers_[0].attention_norm.width > 0))
      norm_first(t, r);
    else if (!model.layers_.empty())
      quantize_for(t, r, model.layers_[0].qkv, hidden(r), hidden_stride);
  }

  // The rows' codes are those of what the sub-block reads.
  void qkv(Team& t, const Rows& r, const Layer& l) {
    if (!l.num_heads) return;
    const int stride = row_stride(3 * l.attention_size);
    float* const out = w.qkv + static_cast<size_t>(r.first) * stride;
    const float* const x = spec.is_pre_norm && l.attention_norm.width > 0 ? r.normed : hidden(r);
    linear(t, l.qkv, r.codes, x, hidden_stride, r.count, Epilogue::kBias, out, stride);
    if (l.rotary_table < 0) return;
    const RotaryTable& table = rotary_tables[l.rotary_table];
    const RotateArgs args{out,          stride, l.num_heads, l.head_dim, w.position_ids + r.first, table.cosines(),
                          table.sines()};
    t.share(r.count, [&](int begin, int end) { kernels.rotate(args, begin, end); });
  }

  void attention(const Layer& l) {
    const AttentionArgs args{w.qkv,
                             row_stride(3 * l.attention_size),
                             l.attention_size,
                             l.head_dim,
                             w.cu_seqlens,
                             w.context,
                             row_stride(l.attention_size),
                             l.position_bias,
                             spec.max_relative_distance,
                             l.window,
                             l.position_keys,
                             l.position_queries,
                             spec.distance_rows.data(),
                             model.position_stride(),
                             w.num_keys};
    float* scratch = w.scratch + w.scratch_stride * team.rank();
    const auto attend = spec.is_attention_s8 ? kernels.attention_varlen_u8s8 : kernels.attention_varlen;
    team.share(num_sequences * l.num_heads, [&](int begin, int end) {
      for (int i = begin; i < end; ++i) attend(args, i / l.num_heads, i % l.num_heads, scratch);
    });
  }

  // From the context to the layer's hidden states, and the codes of these for the next layer.
  void after_attention(Team& t, const Rows& r, const Layer& l) {
    if (l.num_heads) {
      const int stride = row_stride(l.attention_size);
      float* context = w.context + static_cast<size_t>(r.first) * stride;
      quantize_for(t, r, l.attention_output, context, stride);
      linear(t, l.attention_output, r.codes, context, stride, r.count, Epilogue::kBias, r.projected, hidden_stride);
    }
    add_layernorm(t, r, l.attention_output, spec.is_pre_norm ? l.ffn_norm : l.attention_norm, &l.ffn_up);
    if (l.intermediate_size) {
      const Epilogue activation = epilogue_of(spec.activation);
      linear(t, l.ffn_up, r.codes, spec.is_pre_norm ? r.normed : hidden(r), hidden_stride, r.count,
             spec.is_gated ? Epilogue::kBias : activation, r.ffn, ffn_stride());
      if (spec.is_gated)
        gate(t, r, l, activation);
      else
        quantize_for(t, r, l.ffn_down, r.ffn, ffn_stride());
      linear(t, l.ffn_down, r.codes, r.ffn, ffn_stride(), r.count, Epilogue::kBias, r.projected, hidden_stride);
    }
    const Layer* next = &l == &model.layers_.back() ? nullptr : &l + 1;
    const LayerNormWeights& norm = !spec.is_pre_norm ? l.ffn_norm : next ? next->attention_norm : model.final_norm_;
    add_layernorm(t, r, l.ffn_down, norm, next ? &next->qkv : nullptr);
  }

  // Both halves of a row become one, and its codes if the next linear takes codes.
  void gate(Team& t, const Rows& r, const Layer& l, Epilogue activation) {
    const GateArgs args{
        r.ffn, ffn_stride(), l.intermediate_size, activation, l.ffn_down.takes_codes(), l.ffn_down.inv_smooth, r.codes};
    t.share(r.count, [&](int begin, int end) { kernels.gate(args, begin, end); });
  }

  // Codes of x for `next`, if it takes codes.
  void quantize_for(Team& t, const Rows& r, const Linear& next, const float* x, int x_stride) {
    if (!next.takes_codes()) return;
    const QuantizeArgs args{x, x_stride, next.inputs(), next.inv_smooth, r.codes};
    t.share(r.count, [&](int begin, int end) { kernels.quantize_rows(args, begin, end); });
  }

  // out = epilogue(x @ weight + bias); an s8 linear reads the codes made for it instead of x.
  void linear(Team& t, const Linear& l, const CodeRows& codes, const float* x, int x_stride, int rows,
              Epilogue epilogue, float* out, int out_stride) {
    const int nr = l.takes_codes() ? kernels.s8_nr : kernels.f32_nr;
    const int panels = (l.outputs() + nr - 1) / nr;
    t.share(panels, [&](int begin, int end) {
      const TileRange range{0, rows, begin, end};
      if (l.takes_codes())
        kernels.linear_u8s8_f32({codes, l.s8, epilogue, out, out_stride}, range);
      else
        kernels.linear_f32({x, x_stride, l.f32, epilogue, out, out_stride}, range);
    });
  }

  // hidden = LayerNorm(hidden + what `from` wrote to `projected`, or its bias), and codes for `next` if it takes codes.
  // In a pre-norm model hidden keeps the sum, and normed gets its LayerNorm; after the last layer it is hidden again.
  void add_layernorm(Team& t, const Rows& r, const Linear& from, const LayerNormWeights& norm, const Linear* next) {
    const bool quantize = next && next->takes_codes(), keeps_sum = spec.is_pre_norm && next;
    const bool is_bias_only = from.kind == Linear::Kind::kBiasOnly;
    const AddLayerNormArgs args{is_bias_only ? from.bias_row : r.projected,
                                is_bias_only ? 0 : hidden_stride,
                                hidden(r),
                                hidden_stride,
                                norm,
                                keeps_sum ? hidden(r) : nullptr,
                                hidden_stride,
                                keeps_sum ? r.normed : hidden(r),
                                hidden_stride,
                                quantize,
                                quantize ? next->inv_smooth : nullptr,
                                r.codes};
    t.share(r.count, [&](int begin, int end) { kernels.add_layernorm(args, begin, end); });
  }

  // The norm before the first layer of a pre-norm model, or the last one where there is no layer.
  void norm_first(Team& t, const Rows& r) {
    const Layer* first = model.layers_.empty() ? nullptr : &model.layers_[0];
    const bool quantize = first && first->qkv.takes_codes();
    const AddLayerNormArgs args{hidden(r),
                                hidden_stride,
                                nullptr,
                                0,
                                first ? first->attention_norm : model.final_norm_,
                                nullptr,
                                0,
                                first ? r.normed : hidden(r),
                                hidden_stride,
                                quantize,
                                quantize ? first->qkv.inv_smooth : nullptr,
                                r.codes};
    t.share(r.count, [&](int begin, int end) { kernels.add_layernorm(args, begin, end); });
  }

  // After the last attention no row depends on another: those that no output needs are dropped.
  void keep_rows() {
    const bool reads_first = std::all_of(outputs, outputs + num_outputs, [&](const eb_output& output) {
      const Head& head = head_of(output);
      return !head.is_per_token() && head.steps[0].takes_first_row();
    });
    if (batch.output_tokens && !is_asked(false)) {
      if (spec.exits.empty()) choose_tokens();
    } else if (reads_first) {
      move_rows(num_sequences, [&](int r) { return w.cu_seqlens[r]; });
      team.share(1, [&](int, int) {
        for (int r = 0; r <= num_sequences; ++r) w.cu_seqlens[r] = r;
      });
    }
  }

  // ---- Exits ----

  // Writes what every text's logits are at an exit, which deeper ones replace, and takes out the texts that are sure.
  void leave(size_t index) {
    const Exit& exit = spec.exits[index];
    const bool per_token = exit.head.is_per_token();
    for (int i = 0; i < num_outputs; ++i) run_head(exit.head, per_token ? tokens : num_sequences, 0, outputs[i].data);
    Workspace::Left& left = w.left[index];
    team.share(1, [&](int, int) { close_up(exit.threshold, per_token, left); });
    if (team.is_counting()) return;
    num_sequences = left.sequences.load(std::memory_order_relaxed);
    tokens = left.tokens.load(std::memory_order_relaxed);
    if (per_token) out_rows = tokens;
  }

  void close_up(float threshold, bool per_token, Workspace::Left& left) {
    int sequences = 0, end = 0;
    for (int s = 0, first = 0; s < num_sequences; ++s) {
      const int begin = first, count = w.cu_seqlens[s + 1] - begin;
      first += count;
      const float* const margins = w.margins + (per_token ? begin : s);
      const auto is_sure = [threshold](float margin) { return margin >= threshold; };
      if (std::all_of(margins, margins + (per_token ? count : 1), is_sure)) continue;
      if (sequences < s) {
        const auto move = [](auto* rows, int to, int from, int num_rows, int stride) {
          std::memmove(rows + static_cast<size_t>(to) * stride, rows + static_cast<size_t>(from) * stride,
                       sizeof(*rows) * num_rows * stride);
        };
        move(w.hidden, end, begin, count, hidden_stride);
        move(w.position_ids, end, begin, count, 1);
        if (w.num_keys) w.num_keys[sequences] = w.num_keys[s];
        if (per_token)
          move(w.places, end, begin, count, 1);
        else
          w.places[sequences] = w.places[s];
      }
      end += count;
      w.cu_seqlens[++sequences] = end;
    }
    left.sequences.store(sequences, std::memory_order_relaxed);
    left.tokens.store(end, std::memory_order_relaxed);
  }

  // Moves rows of the hidden states, and of the last layer's context, to the front: row from(r) becomes row r. from(r)
  // ascends, so no row is overwritten before it has moved.
  template <class From>
  void move_rows(int count, From from) {
    const int width = model.layers_.empty() ? 0 : model.layers_.back().attention_size, stride = row_stride(width);
    team.share(1, [&](int, int) {
      for (int r = 0; r < count; ++r) {
        const size_t to = static_cast<size_t>(r), old = static_cast<size_t>(from(r));
        std::memmove(w.hidden + to * hidden_stride, w.hidden + old * hidden_stride, sizeof(float) * spec.hidden_size);
        std::memmove(w.context + to * stride, w.context + old * stride, sizeof(float) * width);
      }
    });
    tokens = count;
  }

  // ---- Heads ----

  const Head& head_of(const eb_output& output) const { return *spec.find_head(output.name); }
  bool is_asked(bool per_token) const {
    return std::any_of(outputs, outputs + num_outputs,
                       [&](const eb_output& o) { return head_of(o).is_per_token() == per_token; });
  }

  // Outputs of sequences come first, because choosing tokens moves the rows that they pool.
  void heads() {
    for (const bool per_token : {false, true}) {
      const bool chooses = batch.output_tokens && !is_chosen && spec.exits.empty();
      if (per_token && chooses && is_asked(true)) choose_tokens();
      for (int i = 0; i < num_outputs; ++i) {
        const Head& head = head_of(outputs[i]);
        if (head.is_per_token() != per_token) continue;
        const int first_out = per_token ? first_out_row : slice.first_sequence;
        if (head.folds_logits())
          fold_logits(head, outputs[i].data + static_cast<size_t>(first_out) * head.width);
        else
          run_head(head, per_token ? out_rows : num_sequences, first_out, outputs[i].data);
      }
    }
  }

  // Keeps only the tokens at which token outputs are asked for.
  void choose_tokens() {
    const int32_t *begin = batch.output_tokens, *end = begin + batch.num_output_tokens;
    const int32_t* const first = std::lower_bound(begin, end, slice.first_token);
    first_out_row = static_cast<int>(first - begin);
    out_rows = static_cast<int>(std::lower_bound(first, end, slice.first_token + tokens) - first);
    move_rows(out_rows, [&](int r) { return first[r] - slice.first_token; });
    is_chosen = true;
  }

  // Runs a head's steps for `count` tokens or sequences, and copies the results to the rows of `to` from `first_out`
  // on, without padding; of a model with exits to those that are left to them, and notes their margins.
  void run_head(const Head& head, int count, int first_out, float* to) {
    const bool has_exits = !spec.exits.empty();
    for (int first = 0; first < count; first += kHeadRows) {
      const int rows = std::min(kHeadRows, count - first);
      const auto [x, stride] = run_steps(head, head.steps.size(), first, rows);
      team.share(rows, [&, x = x, stride = stride](int begin, int end) {
        for (int r = first + begin; r < first + end; ++r) {
          const float* const row = x + static_cast<size_t>(r - first) * stride;
          if (has_exits) w.margins[r] = spec.margin(row, head.width);
          const int place = has_exits ? w.places[r] : first_out + r;
          if (place >= 0) std::memcpy(to + static_cast<size_t>(place) * head.width, row, sizeof(float) * head.width);
        }
      });
    }
  }

  // The rows after the first `num_steps` steps of a head, and their stride.
  std::pair<float*, int> run_steps(const Head& head, size_t num_steps, int first, int rows) {
    float* x = w.hidden + static_cast<size_t>(first) * hidden_stride;
    int stride = hidden_stride, next = 0;
    for (size_t i = 0; i < num_steps; ++i) {
      const HeadStep& step = head.steps[i];
      float* const y = w.head[next];
      switch (step.op) {
        case HeadStep::Op::kPool:
          team.share(rows, [&](int begin, int end) {
            float* part = y;
            for (const Pooling pooling : step.poolings) {
              kernels.pool({w.hidden, hidden_stride, step.inputs, w.cu_seqlens + first, fold_of(pooling), false, false,
                            part, row_stride(step.width)},
                           begin, end);
              part += step.inputs;
            }
          });
          break;
        case HeadStep::Op::kLinear:
        case HeadStep::Op::kDecoder: {
          const Linear& l = model.head_linears_.at(step.weights);
          quantize_for(team, {0, rows, nullptr, nullptr, nullptr, w.codes}, l, x, stride);
          linear(team, l, w.codes, x, stride, rows, epilogue_of(step.activation), y, row_stride(step.width));
          break;
        }
        case HeadStep::Op::kLayerNorm: {
          const AddLayerNormArgs args{x,       stride, nullptr, 0,      model.head_norms_.at(step.weights),
                                      nullptr, 0,      x,       stride, false,
                                      nullptr, w.codes};
          team.share(rows, [&](int begin, int end) { kernels.add_layernorm(args, begin, end); });
          continue;
        }
        case HeadStep::Op::kNormalize:
          normalize(x, step.width, rows);
          continue;
        case HeadStep::Op::kLog1pRelu:  // follows logits that were folded alone
          continue;
        case HeadStep::Op::kColumn:
          x += step.column;
          continue;
      }
      x = y;
      stride = row_stride(step.width);
      next = 1 - next;
    }
    return {x, stride};
  }

  // A head whose logits become one row a sequence: of a block of rows, threads share out chunks of columns, compute
  // their logits and fold them into the output. It begins with 0: a sum does, and of what is below 0 the relu after a
  // maximum leaves 0.
  void fold_logits(const Head& head, float* to) {
    const int width = head.width, n = slice.num_sequences;
    const auto decoder = std::find_if(head.steps.begin(), head.steps.end(),
                                      [](const HeadStep& s) { return s.op == HeadStep::Op::kDecoder; });
    const auto pool = std::find_if(decoder, head.steps.end(), [](const HeadStep& s) { return s.is_pool(); });
    const auto logs_before = pool - decoder - 1, logs_after = head.steps.end() - pool - 1;
    const Linear& l = model.head_linears_.at(decoder->weights);
    const int nr = l.takes_codes() ? kernels.s8_nr : kernels.f32_nr;
    const int columns = std::max(1, kFoldColumns / nr) * nr, chunks = (width + columns - 1) / columns;
    const auto each_row = [&](auto body) {
      team.share(n, [&](int begin, int end) {
        for (int s = begin; s < end; ++s) body(to + static_cast<size_t>(s) * width);
      });
    };
    each_row([&](float* row) { std::memset(row, 0, sizeof(float) * width); });
    for (int first = 0, s = 0; first < tokens; first += kBlockRows) {
      const int rows = std::min(kBlockRows, tokens - first);
      while (w.cu_seqlens[s + 1] <= first) ++s;
      int32_t bounds[kBlockRows + 1] = {0};  // of the sequences that have rows here, from s on
      int count = 0;
      for (int i = s; i < n && w.cu_seqlens[i] < first + rows; ++i)
        bounds[++count] = std::min(w.cu_seqlens[i + 1] - first, rows);
      const auto [x, stride] = run_steps(head, static_cast<size_t>(decoder - head.steps.begin()), first, rows);
      quantize_for(team, {0, rows, nullptr, nullptr, nullptr, w.codes}, l, x, stride);
      team.share(
          chunks,
          [&, x = x, stride = stride](int begin, int end) {
            Team alone;
            float* const logits = w.fold + static_cast<size_t>(team.rank()) * kBlockRows * kFoldColumns;
            for (int c = begin; c < end; ++c) {
              const Linear part = l.columns(c * columns, columns);
              linear(alone, part, w.codes, x, stride, rows, Epilogue::kBias, logits, kFoldColumns);
              for (auto i = logs_before; i > 0; --i)
                for (int r = 0; r < rows; ++r)
                  log1p_relu(logits + static_cast<size_t>(r) * kFoldColumns, part.outputs());
              kernels.pool({logits, kFoldColumns, part.outputs(), bounds, fold_of(pool->poolings[0]), true, false,
                            to + static_cast<size_t>(s) * width + static_cast<size_t>(c) * columns, width},
                           0, count);
            }
          },
          1);
    }
    for (auto i = logs_after; i > 0; --i) each_row([&](float* row) { log1p_relu(row, width); });
  }

  // Divides rows by their L2 norm: pooling over "sequences" of one row each.
  void normalize(float* x, int width, int n) {
    static constexpr int32_t kOneRow[2] = {0, 1};
    team.share(n, [&](int begin, int end) {
      for (int r = begin; r < end; ++r) {
        float* row = x + static_cast<size_t>(r) * row_stride(width);
        kernels.pool({row, row_stride(width), width, kOneRow, Fold::kFirst, false, true, row, row_stride(width)}, 0, 1);
      }
    });
  }
};

// ---- Running ------------------------------------------------------------------------------------------------------

void Encoder::Impl::run(const eb_batch& batch, const eb_output* outputs, int num_outputs) {
  const int total = batch.cu_seqlens[batch.num_sequences];
  Workplace& here = workplace();
  ThreadPool::Turn turn(here.pool, total <= kShortRunTokens);
  const int threads = turn.num_threads();
  std::unique_ptr<Desk>& own = here.desks[static_cast<size_t>(turn.place())];
  if (!own) own = std::make_unique<Desk>();
  Desk& desk = *own;
  if (desk.workspaces.size() < static_cast<size_t>(1 + threads))
    desk.workspaces.resize(static_cast<size_t>(1 + threads));
  // Slices of about equal size, as many for one thread as for another if the sequences' lengths allow that. Of few
  // tokens there are fewer slices than threads.
  const int least = (total + kMicroBatchTokens - 1) / kMicroBatchTokens, wanted = round_up(least, threads);
  const int slice_tokens = least < threads ? kMicroBatchTokens : (total + wanted - 1) / wanted;
  std::vector<Slice>& slices = desk.slices;
  slices.clear();
  int largest_tokens = 0, largest_sequences = 0, max_seqlen = 0;
  for (int s = 0; s < batch.num_sequences; ++s) {
    const int length = batch.cu_seqlens[s + 1] - batch.cu_seqlens[s];
    max_seqlen = std::max(max_seqlen, length);
    if (slices.empty() || slices.back().num_tokens + length > slice_tokens)
      slices.push_back({s, 0, batch.cu_seqlens[s], 0});
    ++slices.back().num_sequences;
    slices.back().num_tokens += length;
    largest_tokens = std::max(largest_tokens, slices.back().num_tokens);
    largest_sequences = std::max(largest_sequences, slices.back().num_sequences);
  }
  while (desk.rotary_tables.size() < rotations_.size()) {
    const auto& [base, head_dim] = rotations_[desk.rotary_tables.size()];
    desk.rotary_tables.push_back({base, head_dim, 0, {}});
  }
  for (RotaryTable& table : desk.rotary_tables) reserve(table, max_seqlen);
  // Each thread gets equally many slices of its own; the rest becomes one slice for the whole team.
  const int num_alone = static_cast<int>(slices.size()) / threads * threads;
  Slice together{batch.num_sequences, 0, batch.cu_seqlens[batch.num_sequences], 0};
  if (num_alone < static_cast<int>(slices.size())) {
    const Slice& first = slices[num_alone];
    together = {first.first_sequence, batch.num_sequences - first.first_sequence, first.first_token,
                batch.cu_seqlens[batch.num_sequences] - first.first_token};
  }
  std::vector<Workspace>& workspaces = desk.workspaces;
  // Room for any arrangement of slices of these sizes, so that memory does not grow with another batch of them.
  if (threads > 1)
    reserve(workspaces[0], (threads - 1) * largest_tokens, (threads - 1) * largest_sequences, max_seqlen, threads);
  for (int rank = 0; num_alone > 0 && rank < threads; ++rank)  // a text alone does without
    reserve(workspaces[1 + rank], largest_tokens, largest_sequences, max_seqlen, 1);
  if (together.num_sequences) place(workspaces[0], batch, together);
  const auto body = [&](Team& team) {
    team.share(num_alone, [&](int begin, int end) {
      Team alone;
      Workspace& workspace = workspaces[1 + team.rank()];
      for (int i = begin; i < end; ++i) {
        place(workspace, batch, slices[i]);
        Pass{*this, alone, workspace, desk.rotary_tables, batch, slices[i], outputs, num_outputs}.run();
      }
    });
    if (together.num_sequences)
      Pass{*this, team, workspaces[0], desk.rotary_tables, batch, together, outputs, num_outputs}.run();
  };
  turn.run(std::cref(body));  // a reference: a copy would be allocated
}

void Encoder::require(const eb_options& options) {
  if (options.device != 0) {
    throw Error(EB_UNAVAILABLE, "device is " + std::to_string(options.device) +
                                    ", expected 0: this library runs on CPUs; GPUs are libedgebert_cuda's");
  }
  select_kernels(options.isa);
}
Encoder::Encoder(const ModelFile& file, const eb_options& options) {
  const int num_threads = options.num_threads > 0 ? options.num_threads : usable_cpus();
  impl_ = std::make_unique<Impl>(file.spec, file.weights, select_kernels(options.isa), num_threads);
}
Encoder::~Encoder() = default;
void Encoder::run(const eb_batch& batch, const eb_output* outputs, int num_outputs) {
  impl_->run(batch, outputs, num_outputs);
}
const EncoderSpec& Encoder::spec() const { return impl_->spec(); }
const char* Encoder::isa() const { return impl_->isa(); }
int Encoder::num_threads() const { return impl_->num_threads(); }
size_t Encoder::workspace_bytes() const { return impl_->workspace_bytes(); }
const char* Encoder::built_isas() { return edgebert::built_isas(); }
const char* Encoder::usable_isas() { return edgebert::usable_isas(); }
int Encoder::default_threads() { return usable_cpus(); }

}  // namespace edgebert
