#include "text/rows.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <limits>
#include <string>
#include <vector>

#include "base/api_guard.h"
#include "base/platform.h"
#include "base/thread_pool.h"
#include "text/unicode.h"

namespace edgebert::text {
namespace {

constexpr int64_t kMaxTextBytes = int64_t{1} << 28;
constexpr int64_t kMaxTokens = std::numeric_limits<int32_t>::max();

// Sequences of some of the rows.
struct Part {
  Buffer<int32_t> ids, types, lengths, offsets, words, rows, last_texts, owned;
  Buffer<uint8_t> is_truncated;

  void clear() {
    for (Buffer<int32_t>* buffer : {&ids, &types, &lengths, &offsets, &words, &rows, &last_texts, &owned})
      buffer->clear();
    is_truncated.clear();
  }
};

struct Result : eb_tokens {
  std::unique_ptr<int32_t[]> block;
};

// The tokens of a row's one or two texts, before they are cut.
struct Row {
  std::array<Tokens, 2> texts;
  std::array<int64_t, 2> sizes;
  size_t num_texts;
};

class Builder {
 public:
  // Errors count rows from `first_row`.
  Builder(const Tokenizer& tokenizer, const eb_texts& texts, const eb_tokenize_options& options, const RowNames& names,
          Scratch* scratch, Row* row, int32_t first_row)
      : tokenizer_(tokenizer),
        texts_(texts),
        options_(options),
        names_(names),
        has_windows_(options.long_texts == EB_LONG_WINDOWS),
        cuts_left_(options.side == EB_SIDE_OF_TOKENIZER ? tokenizer.cuts_left() : options.side == EB_SIDE_LEFT),
        scratch_(scratch),
        row_(*row),
        first_row_(first_row) {}

  void add_row(int32_t index, Part* part) {
    const int32_t first = texts_.row_bounds == nullptr ? index : texts_.row_bounds[index];
    const int32_t last = texts_.row_bounds == nullptr ? index + 1 : texts_.row_bounds[index + 1];
    row_.num_texts = static_cast<size_t>(last - first);
    for (size_t i = 0; i < row_.num_texts; ++i) read_text(index, first + static_cast<int32_t>(i), i);
    const Layout& layout = tokenizer_.layout(row_.num_texts);
    const int64_t num_special = options_.no_special_tokens != 0 ? 0 : layout.num_special();
    const int64_t limit = options_.max_length > 0 ? options_.max_length : kMaxTokens;
    const int64_t room = limit - num_special;
    if (room < 0) {
      fail(names_.name_row(first_row_ + index) + ": max_length " + std::to_string(limit) + " has no room for the " +
           std::to_string(num_special) + " special tokens of a pair: raise it");
    }
    if (has_windows_ || options_.cuts_last_text != 0) {
      add_windows(index, layout, room, part);
    } else {
      add_cut(index, layout, room, part);
    }
  }

 private:
  using Ranges = std::array<std::pair<int64_t, int64_t>, 2>;

  void read_text(int32_t row, int32_t index, size_t place) {
    const int64_t begin = texts_.text_bounds[index], size = texts_.text_bounds[index + 1] - begin;
    check_size(size, names_, first_row_ + row, place);
    const std::string_view text(texts_.data + begin, static_cast<size_t>(size));
    size_t at;
    if (!is_utf8(text, &at)) {
      fail(names_.name(first_row_ + row, place) + " is not valid UTF-8 at byte " +
           std::to_string(place == 0 ? at - names_.prefix_size : at));
    }
    Tokens& tokens = row_.texts[place];
    tokens.ids.clear();
    tokens.spans.clear();
    tokens.words.clear();
    tokenizer_.tokenize(text, has_offsets(), scratch_, &tokens);
    row_.sizes[place] = static_cast<int64_t>(tokens.ids.size());
    if (options_.offset_unit <= EB_OFFSETS_BYTES) return;
    scratch_->positions.clear();
    scratch_->positions.reserve_more(text.size() + 1);  // also where this text needs none, for one as large
    if (!is_ascii(text)) convert(text, &tokens);
  }

  bool has_offsets() const { return options_.offset_unit != EB_OFFSETS_NONE; }

  // Offsets in bytes to those in code points or UTF-16 units.
  void convert(std::string_view text, Tokens* tokens) {
    Buffer<uint32_t>& positions = scratch_->positions;
    uint32_t count = 0;
    for (size_t at = 0; at < text.size();) {
      const uint32_t length = length_of(text[at]);
      positions[at] = count;
      count += options_.offset_unit == EB_OFFSETS_UTF16 && length == 4 ? 2 : 1;
      at += length;
    }
    positions[text.size()] = count;
    for (size_t i = 0; i < tokens->spans.size(); ++i) {
      Span& span = tokens->spans[i];
      span = {positions[span.begin], positions[span.end]};
    }
  }

  void add_cut(int32_t index, const Layout& layout, int64_t room, Part* part) {
    Ranges ranges{};
    const auto& sizes = row_.sizes;
    std::array<int64_t, 2> keep = sizes;
    const int64_t total = sizes[0] + (row_.num_texts == 2 ? sizes[1] : 0);
    if (total > room) {
      if (row_.num_texts == 1) {
        keep[0] = room;
      } else {
        // When both are longer than half of the room, both get half; the spare token of an odd room goes to the longer
        // text, on a tie to the second.
        const int64_t shorter = std::min(std::min(sizes[0], sizes[1]), room / 2);
        keep = {shorter, room - shorter};
        if (sizes[0] > sizes[1]) std::swap(keep[0], keep[1]);
      }
    }
    for (size_t i = 0; i < row_.num_texts; ++i) {
      const int64_t begin = cuts_left_ ? sizes[i] - keep[i] : 0;
      ranges[i] = {begin, begin + keep[i]};
    }
    add_sequence(index, layout, ranges, {0, keep[row_.num_texts - 1]}, part);
    part->is_truncated.push(total > room ? 1 : 0);
  }

  // The last text in windows, or its first one alone; the first of a pair stands whole in each.
  void add_windows(int32_t index, const Layout& layout, int64_t room, Part* part) {
    Ranges ranges{};
    const size_t last = row_.num_texts - 1;
    const int64_t size = row_.sizes[last];
    if (last == 1) {
      ranges[0] = {0, row_.sizes[0]};
      room -= row_.sizes[0];
    }
    int64_t stride = options_.stride;  // 0 without windows
    if (options_.lowers_stride != 0 && stride >= room) stride = std::max<int64_t>(room, 0) / 2;
    const int64_t step = room - stride;
    if (size > room && step < 1) {
      fail(names_.name_row(first_row_ + index) + ": max_length " + std::to_string(options_.max_length) + " leaves " +
           std::to_string(std::max<int64_t>(room, 0)) + " tokens to a window, special tokens" +
           (last == 1 ? " and " + names_.name(first_row_ + index, 0) : "") + " taken off, and stride is " +
           std::to_string(options_.stride) + ": raise max_length or lower stride");
    }
    // All windows are full but the last, or where the beginning would be cut off, the first.
    const int64_t num_windows = has_windows_ && size > room ? (size - room + step - 1) / step + 1 : 1;
    for (int64_t i = 0; i < num_windows; ++i) {
      int64_t begin = i * step, end = std::min(begin + room, size);
      if (cuts_left_) {
        end = size - (num_windows - 1 - i) * step;
        begin = std::max<int64_t>(end - room, 0);
      }
      ranges[last] = {begin, end};
      // What two windows share is owned half by each.
      const int64_t owned_begin = i > 0 ? stride - stride / 2 : 0;
      const int64_t owned_end = end - begin - (i + 1 < num_windows ? stride / 2 : 0);
      add_sequence(index, layout, ranges, {owned_begin, owned_end}, part);
    }
    part->is_truncated.push(!has_windows_ && size > room ? 1 : 0);
  }

  void add_special(const Layout& layout, size_t place, Part* part) {
    if (options_.no_special_tokens != 0) return;
    for (size_t i = 0; i < layout.special_ids[place].size(); ++i) {
      part->ids.push(layout.special_ids[place][i]);
      part->types.push(layout.special_types[place][i]);
      if (!has_offsets()) continue;
      part->offsets.push(0);
      part->offsets.push(0);
      part->words.push(-1);
    }
  }

  void add_sequence(int32_t index, const Layout& layout, const Ranges& ranges, std::pair<int64_t, int64_t> owned,
                    Part* part) {
    const size_t start = part->ids.size();
    size_t last = start;
    add_special(layout, 0, part);
    for (size_t i = 0; i < row_.num_texts; ++i) {
      const auto begin = static_cast<size_t>(ranges[i].first);
      const size_t count = static_cast<size_t>(ranges[i].second) - begin;
      const Tokens& tokens = row_.texts[i];
      last = part->ids.size() - start;
      part->ids.append(tokens.ids.data() + begin, count);
      part->types.reserve_more(count);
      std::fill_n(part->types.end(), count, layout.text_types[i]);
      part->types.set_size(part->types.size() + count);
      if (has_offsets()) {
        part->offsets.reserve_more(2 * count);
        if (count > 0) std::memcpy(part->offsets.end(), tokens.spans.data() + begin, count * sizeof(Span));
        part->offsets.set_size(part->offsets.size() + 2 * count);
        part->words.append(tokens.words.data() + begin, count);
      }
      add_special(layout, i + 1, part);
    }
    const auto& range = ranges[row_.num_texts - 1];
    part->lengths.push(static_cast<int32_t>(part->ids.size() - start));
    part->rows.push(index);
    part->last_texts.push(static_cast<int32_t>(last));
    part->last_texts.push(static_cast<int32_t>(range.second - range.first));
    part->owned.push(static_cast<int32_t>(owned.first));
    part->owned.push(static_cast<int32_t>(owned.second));
    if (part->ids.size() > static_cast<size_t>(kMaxTokens) / 2) {
      fail("the texts give more tokens than a batch can have: use smaller batches");
    }
  }

  const Tokenizer& tokenizer_;
  const eb_texts& texts_;
  const eb_tokenize_options& options_;
  const RowNames& names_;
  const bool has_windows_;
  const bool cuts_left_;
  Scratch* const scratch_;
  Row& row_;
  const int32_t first_row_;
};

// All that the parts have, one array behind the other.
eb_tokens* join(std::vector<Part>* parts, int32_t num_rows, bool has_offsets) {
  size_t total = 0, count = 0;
  for (const Part& part : *parts) {
    total += part.ids.size();
    count += part.lengths.size();
  }
  if (total > static_cast<size_t>(kMaxTokens) / 2) {
    fail("the texts give more tokens than a batch can have: use smaller batches");
  }
  const auto rows = static_cast<size_t>(num_rows);
  const size_t size = total * (has_offsets ? 5 : 2) + count * 6 + 1 + (rows + 3) / 4;
  auto result = std::make_unique<Result>();
  result->block.reset(new int32_t[size]);
  int32_t* at = result->block.get();
  const auto take = [&](Buffer<int32_t> Part::* array) {
    const int32_t* begin = at;
    for (Part& part : *parts) {
      const Buffer<int32_t>& from = part.*array;
      if (from.size() > 0) std::memcpy(at, from.data(), from.size() * sizeof(int32_t));
      at += from.size();
      part.*array = Buffer<int32_t>();
    }
    return begin;
  };
  result->num_sequences = static_cast<int32_t>(count);
  result->num_rows = num_rows;
  result->total_tokens = static_cast<int32_t>(total);
  result->input_ids = take(&Part::ids);
  result->token_type_ids = take(&Part::types);
  result->cu_seqlens = at;
  int32_t bound = 0;
  *at++ = 0;
  for (const Part& part : *parts) {
    for (size_t i = 0; i < part.lengths.size(); ++i) *at++ = bound += part.lengths[i];
  }
  result->offsets = has_offsets ? take(&Part::offsets) : nullptr;
  result->word_ids = has_offsets ? take(&Part::words) : nullptr;
  result->rows = take(&Part::rows);
  result->last_texts = take(&Part::last_texts);
  result->owned = take(&Part::owned);
  auto* is_truncated = reinterpret_cast<uint8_t*>(at);
  result->is_truncated = is_truncated;
  for (const Part& part : *parts) {
    if (part.is_truncated.size() > 0) std::memcpy(is_truncated, part.is_truncated.data(), part.is_truncated.size());
    is_truncated += part.is_truncated.size();
  }
  return result.release();
}

}  // namespace

void check_size(int64_t size, const RowNames& names, int32_t index, size_t place) {
  if (size <= kMaxTextBytes) return;
  fail(names.name(index, place) + " has " + std::to_string(size) + " bytes, at most " + std::to_string(kMaxTextBytes) +
       " are possible: split it");
}

void check_options(const Tokenizer& tokenizer, const eb_tokenize_options& options, size_t num_texts) {
  if (options.max_length < 0) fail("max_length is negative: 0 stands for no limit");
  if (options.long_texts < EB_LONG_DEFAULT || options.long_texts > EB_LONG_WINDOWS) fail("long_texts is unknown");
  if (options.offset_unit < EB_OFFSETS_NONE || options.offset_unit > EB_OFFSETS_UTF16) fail("offset_unit is unknown");
  if (options.side < EB_SIDE_OF_TOKENIZER || options.side > EB_SIDE_LEFT) fail("side is unknown");
  if (options.num_threads < 0) fail("num_threads is negative");
  if (options.stride < 0) fail("stride is " + std::to_string(options.stride) + ", expected 0 or more");
  if (options.long_texts != EB_LONG_WINDOWS && options.stride > 0) {
    fail("stride is " + std::to_string(options.stride) +
         ", and there are no windows: set long_texts to EB_LONG_WINDOWS");
  }
  if (options.max_length == 0) return;
  const int64_t num_special = options.no_special_tokens != 0 ? 0 : tokenizer.layout(num_texts).num_special();
  const int64_t room = options.max_length - num_special;
  if (room < 0) {
    fail("max_length " + std::to_string(options.max_length) + " has no room for the " + std::to_string(num_special) +
         " special tokens of a " + (num_texts == 2 ? "pair" : "text") + ": raise it");
  }
  if (options.long_texts == EB_LONG_WINDOWS && options.lowers_stride == 0 && options.stride >= room) {
    fail("stride is " + std::to_string(options.stride) + ", and max_length " + std::to_string(options.max_length) +
         " leaves " + std::to_string(room) +
         " tokens to a window, special tokens taken off: " + "raise max_length or lower stride");
  }
}

void check_texts(const eb_texts& texts) {
  if (texts.num_rows < 0) fail("num_rows is " + std::to_string(texts.num_rows) + ", expected 0 or more");
  if (texts.num_rows == 0) return;
  if (texts.text_bounds == nullptr) fail("text_bounds is NULL");
  int32_t num_texts = texts.num_rows;
  if (texts.row_bounds != nullptr) {
    if (texts.row_bounds[0] != 0) fail("row_bounds[0] is not 0");
    for (int32_t i = 0; i < texts.num_rows; ++i) {
      const int64_t count = int64_t{texts.row_bounds[i + 1]} - texts.row_bounds[i];
      if (count < 1 || count > 2)
        fail("row " + std::to_string(i) + " has " + std::to_string(count) + " texts, expected 1 or 2");
    }
    num_texts = texts.row_bounds[texts.num_rows];
  }
  if (texts.text_bounds[0] < 0) fail("text_bounds[0] is negative");
  for (int32_t i = 0; i < num_texts; ++i) {
    if (texts.text_bounds[i + 1] < texts.text_bounds[i]) fail("text_bounds[" + std::to_string(i + 1) + "] goes back");
  }
  if (texts.data == nullptr && texts.text_bounds[num_texts] > 0) fail("data is NULL");
}

eb_tokens* tokenize_rows(const Tokenizer& tokenizer, const eb_texts& texts, const eb_tokenize_options& options) {
  check_texts(texts);
  check_options(tokenizer, options, 1);
  RowNames names;
  if (texts.row_bounds != nullptr) names = {"row", "the first text of row", "the second text of row"};
  constexpr int64_t kChunkBytes = 1 << 16;  // of text; less is not worth a thread
  const auto bound = [&](int32_t row) {
    return texts.text_bounds[texts.row_bounds == nullptr ? row : texts.row_bounds[row]];
  };
  std::vector<int32_t> chunks = {0};
  int num_threads = 1;
  if (texts.num_rows > 1 && bound(texts.num_rows) - bound(0) > kChunkBytes) {
    num_threads = options.num_threads > 0 ? options.num_threads : eb_default_threads();
  }
  if (num_threads > 1) {
    for (int32_t row = 0; row < texts.num_rows; ++row) {
      if (bound(row) - bound(chunks.back()) >= kChunkBytes) chunks.push_back(row);
    }
  }
  if (texts.num_rows > 0) chunks.push_back(texts.num_rows);
  const size_t num_chunks = chunks.size() - 1;

  std::vector<Part> parts(num_chunks);
  std::atomic<size_t> next{0};
  Mutex mutex;
  std::exception_ptr error;
  size_t error_chunk = num_chunks;
  const auto work = [&] {
    size_t chunk = 0;
    std::unique_ptr<Scratch> scratch;
    try {
      scratch = tokenizer.borrow_scratch();
      Row row;
      Builder builder(tokenizer, texts, options, names, scratch.get(), &row, 0);
      while ((chunk = next.fetch_add(1)) < num_chunks) {
        const auto bytes = static_cast<size_t>(bound(chunks[chunk + 1]) - bound(chunks[chunk]));
        const size_t guess = std::min(bytes / 4, size_t{1} << 20);  // sizes are checked as rows are read
        parts[chunk].ids.reserve_more(guess);
        parts[chunk].types.reserve_more(guess);
        for (int32_t row = chunks[chunk]; row < chunks[chunk + 1]; ++row) builder.add_row(row, &parts[chunk]);
      }
    } catch (...) {  // of several, that of the first text counts, as on one thread
      const Lock lock(mutex);
      if (error == nullptr || chunk < error_chunk) {
        error = std::current_exception();
        error_chunk = chunk;
      }
    }
    if (scratch != nullptr) tokenizer.return_scratch(std::move(scratch));
  };
  run_on_threads(static_cast<int>(std::min(num_chunks, static_cast<size_t>(num_threads))), work);
  if (error != nullptr) std::rethrow_exception(error);

  return join(&parts, texts.num_rows, options.offset_unit != EB_OFFSETS_NONE);
}

struct RowMaker::Memory {
  Scratch scratch;
  Row row;
  Part part;
  Buffer<int32_t> bounds;
  eb_tokens tokens;
};

RowMaker::RowMaker() : memory_(std::make_unique<Memory>()) {}
RowMaker::~RowMaker() = default;

const eb_tokens& RowMaker::make(const Tokenizer& tokenizer, const eb_texts& texts, const eb_tokenize_options& options,
                                const RowNames& names, int32_t first_row) {
  check_texts(texts);
  Part& part = memory_->part;
  part.clear();
  Builder builder(tokenizer, texts, options, names, &memory_->scratch, &memory_->row, first_row);
  for (int32_t row = 0; row < texts.num_rows; ++row) builder.add_row(row, &part);
  Buffer<int32_t>& bounds = memory_->bounds;
  bounds.clear();
  bounds.push(0);
  for (size_t i = 0; i < part.lengths.size(); ++i) bounds.push(bounds[i] + part.lengths[i]);
  const bool has_offsets = options.offset_unit != EB_OFFSETS_NONE;
  memory_->tokens = {static_cast<int32_t>(part.lengths.size()),
                     texts.num_rows,
                     static_cast<int32_t>(part.ids.size()),
                     part.ids.data(),
                     part.types.data(),
                     bounds.data(),
                     has_offsets ? part.offsets.data() : nullptr,
                     has_offsets ? part.words.data() : nullptr,
                     part.rows.data(),
                     part.last_texts.data(),
                     part.owned.data(),
                     part.is_truncated.data()};
  return memory_->tokens;
}

void free_rows(eb_tokens* tokens) { delete static_cast<Result*>(tokens); }

}  // namespace edgebert::text
