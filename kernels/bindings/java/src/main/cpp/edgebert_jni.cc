// The methods of dev.edgebert.Native. Strings pass as UTF-8 in one array, with the end of each in another, since JNI's
// own are not UTF-8; answers go back as arrays of numbers. No loop makes Java objects.
#include <edgebert.h>
#include <jni.h>

#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <vector>

namespace {

struct Thrown {};  // a Java exception is waiting: back to Java

void throw_java(JNIEnv* env, eb_status status, const char* message) noexcept {
  if (env->ExceptionCheck()) return;
  const auto size = static_cast<jsize>(std::strlen(message));
  jclass type = env->FindClass("dev/edgebert/EdgeBertException");
  jmethodID make = type == nullptr ? nullptr : env->GetMethodID(type, "<init>", "(I[B)V");
  jbyteArray bytes = make == nullptr ? nullptr : env->NewByteArray(size);
  if (bytes == nullptr) return;
  env->SetByteArrayRegion(bytes, 0, size, reinterpret_cast<const jbyte*>(message));
  jobject error = env->NewObject(type, make, static_cast<jint>(status), bytes);
  if (error != nullptr) env->Throw(static_cast<jthrowable>(error));
}

void check(JNIEnv* env, eb_status status) {
  if (status == EB_OK) return;
  throw_java(env, status, eb_last_error());
  throw Thrown();
}

// Runs `body`; no C++ exception goes on to Java.
template <typename Body>
auto run(JNIEnv* env, const Body& body) noexcept -> decltype(body()) {
  try {
    return body();
  } catch (const Thrown&) {
  } catch (const std::bad_alloc&) {
    throw_java(env, EB_OUT_OF_MEMORY, "out of memory: call with fewer texts");
  } catch (const std::exception& error) {
    throw_java(env, EB_INTERNAL, error.what());
  }
  return nullptr;
}

// What JNI made, which is NULL where a Java exception is waiting.
template <typename Object>
Object made(Object object) {
  if (object == nullptr) throw Thrown();
  return object;
}

template <typename Value, typename Array>
Array copy(JNIEnv* env, const void* data, size_t size, Array (JNIEnv::*make)(jsize),
           void (JNIEnv::*set)(Array, jsize, jsize, const Value*)) {
  if (size > INT32_MAX) {
    throw_java(env, EB_INVALID_INPUT, "the answer is too large for a Java array: call with fewer texts");
    throw Thrown();
  }
  Array array = made((env->*make)(static_cast<jsize>(size)));
  if (size > 0) (env->*set)(array, 0, static_cast<jsize>(size), static_cast<const Value*>(data));
  return array;
}
jbyteArray to_java(JNIEnv* env, const void* data, size_t size) {
  return copy(env, data, size, &JNIEnv::NewByteArray, &JNIEnv::SetByteArrayRegion);
}
jintArray to_java(JNIEnv* env, const std::vector<int32_t>& data) {
  return copy(env, data.data(), data.size(), &JNIEnv::NewIntArray, &JNIEnv::SetIntArrayRegion);
}

template <typename... Arrays>
jobjectArray pack(JNIEnv* env, Arrays... arrays) {
  jclass type = made(env->FindClass("java/lang/Object"));
  jobjectArray packed = made(env->NewObjectArray(sizeof...(arrays), type, nullptr));
  jsize place = 0;
  (env->SetObjectArrayElement(packed, place++, arrays), ...);
  return packed;
}

// The array's bytes and a NUL behind them; NULL for null.
std::unique_ptr<char[]> from_java(JNIEnv* env, jbyteArray array) {
  if (array == nullptr) return nullptr;
  const jsize size = env->GetArrayLength(array);
  auto data = std::make_unique<char[]>(static_cast<size_t>(size) + 1);
  env->GetByteArrayRegion(array, 0, size, reinterpret_cast<jbyte*>(data.get()));
  return data;
}
std::vector<int32_t> from_java(JNIEnv* env, jintArray array) {
  std::vector<int32_t> data(static_cast<size_t>(env->GetArrayLength(array)));
  env->GetIntArrayRegion(array, 0, static_cast<jsize>(data.size()), data.data());
  return data;
}

struct Texts {
  Texts(JNIEnv* env, jbyteArray bytes, jintArray ends) : data(from_java(env, bytes)) {
    if (bytes == nullptr) return;
    texts.reserve(1);  // so that none are not NULL
    int32_t begin = 0;
    for (const int32_t end : from_java(env, ends)) {
      texts.push_back({data.get() + begin, end - begin});
      begin = end;
    }
  }
  int32_t size() const { return static_cast<int32_t>(texts.size()); }

  std::unique_ptr<char[]> data;
  std::vector<eb_text> texts;
};

// Answers as dev.edgebert.Answer has them.
struct Answers {
  void add(const std::string& label, int32_t index, int32_t begin, int32_t end, double score) {
    labels += label;
    numbers.insert(numbers.end(), {static_cast<int32_t>(labels.size()), index, begin, end});
    scores.push_back(score);
  }
  void end_group() { bounds.push_back(static_cast<int32_t>(scores.size())); }
  jobjectArray to_java(JNIEnv* env, const uint8_t* is_truncated, int32_t num_texts) const {
    return pack(env, ::to_java(env, is_truncated, static_cast<size_t>(num_texts)), ::to_java(env, bounds),
                ::to_java(env, labels.data(), labels.size()), ::to_java(env, numbers),
                copy(env, scores.data(), scores.size(), &JNIEnv::NewDoubleArray, &JNIEnv::SetDoubleArrayRegion));
  }

  std::string labels;
  std::vector<int32_t> numbers;
  std::vector<double> scores;
  std::vector<int32_t> bounds = {0};
};

std::string detokenize(JNIEnv* env, const eb_tokenizer* tokenizer, int32_t token) {
  std::string text(64, '\0');
  for (;;) {
    size_t size = 0;
    check(env, eb_detokenize(tokenizer, &token, 1, 0, &text[0], text.size(), &size));
    const bool fits = size < text.size();
    text.resize(fits ? size : size + 1);
    if (fits) return text;
  }
}

// What Session.ask takes and Options.numbers() gives, in its order.
enum Call { kEmbed, kClassify, kRank, kLabelTokens, kAnswer, kFillMask };
enum Number { kTopK, kFunction, kAggregation, kWidth, kNormalize, kMaxAnswerTokens, kAllowsNoAnswer, kKeepsTokens };

}  // namespace

#define NATIVE(type, name, ...) \
  extern "C" JNIEXPORT type JNICALL Java_dev_edgebert_Native_##name(JNIEnv* env, jclass, __VA_ARGS__)
#define MODEL(handle) reinterpret_cast<eb_model*>(handle)
#define SESSION(handle) reinterpret_cast<eb_session*>(handle)

NATIVE(jlong, load, jbyteArray path, jobject memory, jbyteArray isa, jint threads, jboolean verify, jbyteArray key) {
  return reinterpret_cast<jlong>(run(env, [&] {
    const auto file = from_java(env, path), isa_name = from_java(env, isa), public_key = from_java(env, key);
    eb_options options = {};
    options.isa = isa_name.get();
    options.num_threads = threads;
    options.verify = verify;
    options.public_key = reinterpret_cast<const uint8_t*>(public_key.get());
    eb_model* model = nullptr;
    if (file != nullptr) {
      check(env, eb_load(file.get(), &options, &model));
    } else {
      const auto size = static_cast<size_t>(env->GetDirectBufferCapacity(memory));
      check(env, eb_load_memory(env->GetDirectBufferAddress(memory), size, &options, &model));
    }
    return model;
  }));
}

NATIVE(void, free, jlong model) {
  (void)env;
  eb_free(MODEL(model));
}

// The task and the labels; hidden_size, max_length and the threads.
NATIVE(jobjectArray, describe, jlong handle) {
  return run(env, [&] {
    const eb_model* model = MODEL(handle);
    std::string names = eb_model_task(model);
    std::vector<int32_t> ends = {static_cast<int32_t>(names.size())};
    for (int32_t i = 0; i < eb_model_num_labels(model); ++i) {
      names += eb_model_label(model, i);
      ends.push_back(static_cast<int32_t>(names.size()));
    }
    return pack(env, to_java(env, names.data(), names.size()), to_java(env, ends),
                to_java(env, {eb_model_hidden_size(model), eb_model_max_length(model), eb_model_threads(model)}));
  });
}

NATIVE(jlong, open, jlong model, jint max_length, jint long_texts, jint stride, jint batch_tokens) {
  return reinterpret_cast<jlong>(run(env, [&] {
    const eb_session_options options = {max_length, long_texts, stride, EB_OFFSETS_UTF16, batch_tokens};
    eb_session* session = nullptr;
    check(env, eb_session_open(MODEL(model), &options, &session));
    return session;
  }));
}

NATIVE(void, close, jlong session) {
  (void)env;
  eb_session_free(SESSION(session));
}

NATIVE(void, cancel, jlong session, jboolean is_cancelled) {
  (void)env;
  eb_session_cancel(SESSION(session), is_cancelled);
}

// `others` are pairs, contexts, the query or labels that are ignored; `name` is of a prompt or a label.
NATIVE(jobjectArray, ask, jint call, jlong model_handle, jlong handle, jbyteArray bytes, jintArray ends,
       jbyteArray other_bytes, jintArray other_ends, jbyteArray name_bytes, jbyteArray prompt_bytes,
       jintArray numbers) {
  return run(env, [&]() -> jobjectArray {
    const eb_model* model = MODEL(model_handle);
    eb_session* session = SESSION(handle);
    const Texts given(env, bytes, ends), others(env, other_bytes, other_ends);
    const auto name = from_java(env, name_bytes), prompt = from_java(env, prompt_bytes);
    const std::vector<int32_t> n = from_java(env, numbers);
    const eb_text* texts = given.texts.data();
    const int32_t size = given.size();
    Answers answers;
    if (call == kEmbed) {
      const eb_embed_options options = {name.get(), prompt.get(), n[kNormalize], n[kWidth]};
      eb_embeddings found;
      check(env, eb_embed(session, texts, size, &options, &found));
      const size_t floats = static_cast<size_t>(size) * static_cast<size_t>(found.width);
      return pack(env, to_java(env, found.is_truncated, static_cast<size_t>(size)),
                  copy(env, found.data, floats, &JNIEnv::NewFloatArray, &JNIEnv::SetFloatArrayRegion));
    }
    if (call == kClassify) {
      const eb_classify_options options = {n[kTopK], n[kFunction]};
      eb_classes found;
      check(env, eb_classify(session, texts, others.texts.data(), size, &options, &found));
      for (int32_t i = 0; i < size; ++i, answers.end_group()) {
        for (int64_t k = int64_t{i} * found.top_k; k < int64_t{i + 1} * found.top_k; ++k) {
          answers.add(eb_model_label(model, found.labels[k]), found.labels[k], 0, 0, found.scores[k]);
        }
      }
      return answers.to_java(env, found.is_truncated, size);
    }
    if (call == kRank) {
      const eb_rank_options options = {name.get(), n[kTopK], n[kFunction]};
      eb_ranking found;
      check(env, eb_rank(session, others.texts[0], texts, size, &options, &found));
      for (int32_t i = 0; i < found.num_ranked; ++i) answers.add("", found.texts[i], 0, 0, found.scores[i]);
      answers.end_group();
      return answers.to_java(env, found.is_truncated, size);
    }
    if (call == kLabelTokens) {
      std::vector<std::string> ignored;
      for (const eb_text& label : others.texts) ignored.emplace_back(label.data, static_cast<size_t>(label.size));
      std::vector<const char*> pointers(ignored.size() + 1);
      for (size_t i = 0; i < ignored.size(); ++i) pointers[i] = ignored[i].c_str();
      const bool has_ignored = other_bytes != nullptr;  // else "O"
      const eb_label_options options = {n[kAggregation], has_ignored ? pointers.data() : nullptr, others.size()};
      eb_entities found;
      check(env, eb_label_tokens(session, texts, size, &options, &found));
      for (int32_t i = 0; i < size; ++i, answers.end_group()) {
        for (int32_t k = found.bounds[i]; k < found.bounds[i + 1]; ++k) {
          const eb_entity& entity = found.entities[k];
          answers.add(entity.label, entity.token, entity.begin, entity.end, entity.score);
        }
      }
      return answers.to_java(env, found.is_truncated, size);
    }
    if (call == kAnswer) {
      const eb_answer_options options = {n[kTopK], n[kMaxAnswerTokens], n[kAllowsNoAnswer], n[kKeepsTokens]};
      eb_answers found;
      check(env, eb_answer(session, texts, others.texts.data(), size, &options, &found));
      for (int32_t i = 0; i < size; ++i, answers.end_group()) {
        for (int32_t k = found.bounds[i]; k < found.bounds[i + 1]; ++k) {
          answers.add("", i, found.spans[k].begin, found.spans[k].end, found.spans[k].score);
        }
      }
      return answers.to_java(env, found.is_truncated, size);
    }
    const eb_fill_options options = {n[kTopK]};  // kFillMask, of one text
    eb_fills found;
    check(env, eb_fill_mask(session, texts, size, &options, &found));
    for (int32_t mask = 0; mask < found.bounds[size]; ++mask, answers.end_group()) {
      for (int32_t k = mask * found.top_k; k < (mask + 1) * found.top_k; ++k) {
        const std::string text = detokenize(env, eb_model_tokenizer(model), found.tokens[k]);
        answers.add(text, found.tokens[k], 0, 0, found.scores[k]);
      }
    }
    return answers.to_java(env, found.is_truncated, size);
  });
}
