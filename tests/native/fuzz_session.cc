// Fuzzes the C API's texts and answers: random texts, lengths, options and calls must give answers or an error of its
// own; never a crash.
//
//   fuzz_session MODEL COUNT SEED
//
// Answers must be possible, and the same again. At the end: one text after the other, and nothing is allocated. Run it
// under AddressSanitizer; anything else aborts.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "count_allocations.h"
#include "edgebert.h"

namespace {

std::mt19937_64 generator;

size_t pick(size_t count) { return generator() % count; }

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz_session: %s (last error: %s)\n", what, eb_last_error());
  std::abort();
}

// Small values, and some that are out of range.
int32_t number(int32_t scale = 1) {
  constexpr int32_t kOdd[] = {-1, -2, 2147483647, -2147483647 - 1, 1 << 20};
  return pick(10) == 0 ? kOdd[pick(5)] : scale * static_cast<int32_t>(pick(6) == 0 ? pick(60) : pick(5));
}

// Owns its bytes, each text on the heap for itself, so that a read past the end is seen.
struct Texts {
  std::vector<std::unique_ptr<char[]>> bytes;
  std::vector<eb_text> texts;

  explicit Texts(size_t count) {
    static const std::string kWords[] = {"a", "b",      "c ",      "the ",         "\xc3\xa9",  "\xf0\x9f\x98\x80",
                                         " ", "[MASK]", "router ", "\xe4\xb8\xad", "e\xcc\x81", "\xce\xa3",
                                         "\n"};
    for (size_t i = 0; i < count; ++i) {
      std::string text;
      for (size_t k = pick(pick(8) == 0 ? 200 : 8); k > 0; --k) text += kWords[pick(std::size(kWords))];
      if (pick(40) == 0) text += static_cast<char>(generator());
      if (pick(40) == 0 && !text.empty()) text.resize(text.size() - 1);
      const bool is_terminated = pick(2) == 0;
      bytes.emplace_back(new char[text.size() + (is_terminated ? 1 : 0)]);
      std::memcpy(bytes.back().get(), text.c_str(), text.size() + (is_terminated ? 1 : 0));
      texts.push_back({bytes.back().get(), is_terminated ? -1 : static_cast<int64_t>(text.size())});
      if (pick(100) == 0) texts.back() = {nullptr, static_cast<int64_t>(pick(3)) - 1};
      if (pick(200) == 0) texts.back().size = -static_cast<int64_t>(2 + pick(9));
    }
  }
};

size_t size_of(const eb_text& text) {
  return text.data == nullptr ? 0 : text.size < 0 ? std::strlen(text.data) : static_cast<size_t>(text.size);
}

template <class T>
void put(std::string* all, const T* values, size_t count) {
  if (count > 0) all->append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

// All of an answer's bytes, or nothing after an error.
std::string call(eb_session* session, size_t kind, const Texts& a, const Texts& b, uint64_t seed) {
  generator.seed(seed);
  const auto count = static_cast<int32_t>(a.texts.size());
  const auto n = static_cast<size_t>(count);
  const eb_text* texts = pick(200) == 0 ? nullptr : a.texts.data();
  const bool has_options = pick(4) > 0;
  std::string all;
  eb_status status = EB_OK;
  if (kind == 0) {
    const char* kNames[] = {nullptr, nullptr, "query", "", "none"};
    const eb_embed_options options = {kNames[pick(5)], kNames[pick(5)], number(), number()};
    eb_embeddings found;
    status = eb_embed(session, texts, count, has_options ? &options : nullptr, &found);
    put(&all, found.data, static_cast<size_t>(found.num_texts) * static_cast<size_t>(found.width));
  } else if (kind == 1) {
    const eb_classify_options options = {number(), number()};
    eb_classes found;
    status = eb_classify(session, texts, pick(2) ? b.texts.data() : nullptr, count, has_options ? &options : nullptr,
                         &found);
    put(&all, found.labels, n * static_cast<size_t>(found.top_k));
    put(&all, found.scores, n * static_cast<size_t>(found.top_k));
  } else if (kind == 2) {
    const char* kLabels[] = {nullptr, "LABEL_0", "LABEL_2", "x"};
    const eb_rank_options options = {kLabels[pick(4)], number(), number()};
    eb_ranking found;
    status = eb_rank(session, b.texts.empty() ? eb_text{} : b.texts[0], texts, count, has_options ? &options : nullptr,
                     &found);
    for (int32_t i = 0; i < found.num_ranked; ++i) require(found.texts[i] >= 0 && found.texts[i] < count, "a rank");
    put(&all, found.texts, static_cast<size_t>(found.num_ranked));
    put(&all, found.scores, static_cast<size_t>(found.num_ranked));
  } else if (kind == 3) {
    const char* ignored[] = {"O", nullptr, "LABEL_1"};
    const eb_label_options options = {number(), pick(2) ? ignored : nullptr, static_cast<int32_t>(pick(5)) - 1};
    if (options.num_ignored > 3) return all;
    eb_entities found;
    status = eb_label_tokens(session, texts, count, has_options ? &options : nullptr, &found);
    for (int32_t i = 0; i < found.num_texts; ++i) {
      require(found.bounds[i] <= found.bounds[i + 1], "bounds of entities");
      for (int32_t k = found.bounds[i]; k < found.bounds[i + 1]; ++k) {
        const eb_entity& e = found.entities[k];
        require(e.begin >= 0 && e.end <= static_cast<int64_t>(size_of(texts[i])) && e.label != nullptr, "an entity");
        put(&all, &e.begin, 2);
        put(&all, &e.score, 1);
      }
    }
  } else if (kind == 4) {
    const eb_answer_options options = {number(), number(), number(), number()};
    if (options.top_k > 1000) return all;
    eb_answers found;
    status = eb_answer(session, texts, pick(100) ? b.texts.data() : nullptr, count, has_options ? &options : nullptr,
                       &found);
    for (int32_t i = 0; i < found.num_questions; ++i) {
      require(found.bounds[i] < found.bounds[i + 1], "an answer at least");
      for (int32_t k = found.bounds[i]; k < found.bounds[i + 1]; ++k) {
        const eb_span& s = found.spans[k];
        require(s.begin >= 0 && s.end <= static_cast<int64_t>(size_of(b.texts[static_cast<size_t>(i)])), "a span");
        put(&all, &s.begin, 2);
        put(&all, &s.score, 1);
      }
    }
  } else {
    const eb_fill_options options = {number()};
    eb_fills found;
    status = eb_fill_mask(session, texts, count, has_options ? &options : nullptr, &found);
    if (found.num_texts > 0) {
      const auto values = static_cast<size_t>(found.bounds[n]) * static_cast<size_t>(found.top_k);
      put(&all, found.tokens, values);
      put(&all, found.scores, values);
    }
  }
  require(status == EB_OK || status == EB_INVALID_INPUT || status == EB_UNSUPPORTED, "an unexpected status");
  require(status == EB_OK || (all.empty() && eb_last_error()[0] != '\0'), "an error without message, or with answers");
  return all;
}

void check_allocations(eb_model* model) {
  const std::string task = eb_model_task(model);
  eb_session* session;
  require(eb_session_open(model, nullptr, &session) == EB_OK, "a session");
  const char* kTexts[] = {"the router a b c [MASK] a b a b c", "a [MASK]", "c b a the [MASK] \xc3\xa9"};
  long before = 0;
  for (int i = 0; i < 20; ++i) {
    if (i == 3) before = num_allocations();
    const eb_text text = {kTexts[i % 3], -1};
    union {
      eb_embeddings embeddings;
      eb_classes classes;
      eb_entities entities;
      eb_answers answers;
      eb_fills fills;
    } found;
    const eb_status status =
        task == "embedding"                            ? eb_embed(session, &text, 1, nullptr, &found.embeddings)
        : task == "token-classification"               ? eb_label_tokens(session, &text, 1, nullptr, &found.entities)
        : task == "question-answering"                 ? eb_answer(session, &text, &text, 1, nullptr, &found.answers)
        : task == "fill-mask" || task == "pretraining" ? eb_fill_mask(session, &text, 1, nullptr, &found.fills)
                                                       : eb_classify(session, &text, &text, 1, nullptr, &found.classes);
    require(status == EB_OK, "a plain call");
  }
  require(num_allocations() == before, "a session that is warm allocates");
  eb_session_free(session);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fuzz_session MODEL COUNT SEED\n");
    return 2;
  }
  const int num_calls = std::atoi(argv[2]);
  std::mt19937_64 seeds(static_cast<uint64_t>(std::atoll(argv[3])));
  eb_model* model;
  eb_options loading = {};
  loading.num_threads = 2;
  require(eb_load(argv[1], &loading, &model) == EB_OK, "the model does not load");
  const std::string task = eb_model_task(model);
  const std::vector<size_t> fitting = task == "embedding"              ? std::vector<size_t>{0}
                                      : task == "text-classification"  ? std::vector<size_t>{1, 2}
                                      : task == "token-classification" ? std::vector<size_t>{3}
                                      : task == "question-answering"   ? std::vector<size_t>{4}
                                      : task == "fill-mask"            ? std::vector<size_t>{5}
                                                                       : std::vector<size_t>{1, 5};
  long num_answers = 0, num_sessions = 0;
  eb_session* session = nullptr;
  for (int i = 0; i < num_calls; ++i) {
    generator.seed(seeds());
    if (session == nullptr || pick(8) == 0) {
      eb_session_free(session);
      eb_session_options options = {number(10), number(), number(), number(), pick(2) ? 0 : number(10)};
      if (options.long_texts != EB_LONG_WINDOWS && pick(9) > 0) options.stride = 0;
      if (pick(3) == 0) options = {};
      eb_session* opened = reinterpret_cast<eb_session*>(&options);
      const eb_status status = eb_session_open(model, pick(9) ? &options : nullptr, &opened);
      require((status == EB_OK) == (opened != nullptr), "a session where there is an error");
      session = opened;
      num_sessions += session != nullptr;
    }
    const Texts a(pick(5)), b(a.texts.size());
    const size_t kind = pick(8) == 0 ? pick(6) : fitting[pick(fitting.size())];
    const uint64_t seed = generator();
    const std::string first = call(session, kind, a, b, seed);
    const std::string second = call(session, kind, a, b, seed);
    require(first == second, "another answer to the same");
    num_answers += !first.empty();
  }
  eb_session_free(session);
  check_allocations(model);
  eb_free(model);
  std::printf("%s: %d calls, %ld sessions, %ld with answers\n", argv[1], num_calls, num_sessions, num_answers);
  return 0;
}
