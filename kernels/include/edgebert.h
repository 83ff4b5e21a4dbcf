/* EdgeBERT C API: one file in; packed batches through, arrays out; or texts in, answers out. Valid C99.
 *
 * An app that has texts needs eb_load, eb_session_open and the call of its task: eb_embed, eb_classify, eb_rank,
 * eb_label_tokens, eb_answer or eb_fill_mask. They give what Python's tasks give, to the bit.
 *
 * Two libraries have it: libedgebert runs on CPUs, libedgebert_cuda on NVIDIA GPUs.
 * Every call returns a status; eb_last_error() gives the message of the last failed call of the calling thread, until
 * that thread's next one fails. What a failed call would have made is NULL, and its result all zero.
 * A model may be used from several threads, and is freed when no call uses it. Runs go on side by side, on as many
 * threads together as the model has: one alone on all of them, several on equal parts, and as many at once as there are
 * threads, while others wait. With libedgebert_cuda they take turns. A forked child may use and free a model too,
 * whatever other threads were doing at the fork; with libedgebert_cuda it gets EB_UNAVAILABLE, and must load its own.
 */
#ifndef EDGEBERT_H_
#define EDGEBERT_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(EDGEBERT_BUILD)
#define EB_API __declspec(dllexport)
#else
#define EB_API
#endif
#else
#define EB_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum eb_status {
  EB_OK = 0,
  EB_INVALID_INPUT = 1, /* ids, types, lengths or arguments of a call */
  EB_MODEL_FORMAT = 2,  /* the file is missing, damaged or changed */
  EB_UNSUPPORTED = 3,   /* well formed, but outside what this engine runs */
  EB_UNAVAILABLE = 4,   /* an ISA or device that this CPU or this build lacks */
  EB_OUT_OF_MEMORY = 5,
  EB_INTERNAL = 6,
  EB_CANCELLED = 7 /* by eb_session_cancel */
} eb_status;

typedef struct eb_model eb_model;

typedef struct eb_options {
  const char* isa;           /* NULL: EDGEBERT_FORCE_ISA if set, else the best this CPU has */
  int32_t num_threads;       /* of all runs together; 0: the CPUs this process may use (affinity, cgroup quota) */
  int32_t device;            /* libedgebert_cuda: which GPU; libedgebert: 0 */
  int32_t verify;            /* 1: compare the file's content, weights and tokenizer too, with its hash; a file
                                without one is refused */
  const uint8_t* public_key; /* [32], or NULL: verify, and refuse what is not signed with this Ed25519 key, by
                                `edgebert sign` */
  int32_t ids_only;          /* 1: leave the file's tokenizer out, for eb_run alone */
  int32_t full_depth;        /* 1: run all layers for every text, also in a file with exits, where a text that is sure
                                goes no deeper; libedgebert_cuda always does */
} eb_options;

/* Sequence i holds tokens cu_seqlens[i] .. cu_seqlens[i + 1] - 1; every sequence has at least one token. */
typedef struct eb_batch {
  const int32_t* input_ids;      /* [total_tokens] */
  const int32_t* token_type_ids; /* [total_tokens], or NULL for zeros */
  const int32_t* cu_seqlens;     /* [num_sequences + 1] */
  int32_t num_sequences;
  const int32_t* output_tokens; /* [num_output_tokens], ascending: token outputs have a row for each of these tokens
                                   of the batch alone; NULL: for every token */
  int32_t num_output_tokens;
} eb_batch;

/* One output asked for: its name in the file, and where to write it. */
typedef struct eb_output {
  const char* name;
  float* data;     /* rows * width floats, row-major */
  size_t capacity; /* floats that fit in data; if the output has more, EB_INVALID_INPUT */
} eb_output;

/* Structs and functions of one number fit each other; whoever loads the library at run time compares the two. */
#define EB_ABI_VERSION 1
EB_API int32_t eb_abi_version(void);
EB_API const char* eb_version(void);
EB_API const char* eb_last_error(void);

/* Names of the ISA tables, best first, separated by commas: those in this build, and those this CPU can run.
 * libedgebert_cuda: the GPU architectures in this build, and the GPUs here that it can run on; where the second is
 * empty, eb_last_error() says why. */
EB_API const char* eb_built_isas(void);
EB_API const char* eb_usable_isas(void);
/* The number of threads that num_threads = 0 stands for here. */
EB_API int32_t eb_default_threads(void);

EB_API eb_status eb_load(const char* path, const eb_options* options, eb_model** model);
/* What is needed of the bytes is copied: they may go when this has returned. */
EB_API eb_status eb_load_memory(const void* data, size_t size, const eb_options* options, eb_model** model);
EB_API void eb_free(eb_model* model);

EB_API const char* eb_model_isa(const eb_model* model);
EB_API int32_t eb_model_threads(const eb_model* model);
/* Bytes the model holds for activations; flat once the largest batch was seen, and as many runs at once. */
EB_API size_t eb_model_workspace_bytes(const eb_model* model);
EB_API eb_status eb_run(eb_model* model, const eb_batch* batch, eb_output* outputs, int32_t num_outputs);

/* ---- Tokenizers ---- */

/* One is made of the JSON of the tokenizers library, as a model file carries it under
 * "edgebert.tokenizer", and gives that library's ids, types, offsets and words. What it cannot give to the letter it
 * refuses with EB_UNSUPPORTED, and names it: when it is loaded, or if it is the decoder, when a text is asked for. The
 * JSON's own limits and padding are left out. A tokenizer may be used from several threads at once, and by a forked
 * child. */
typedef struct eb_tokenizer eb_tokenizer;

typedef enum eb_offset_unit {
  EB_OFFSETS_NONE = 0,
  EB_OFFSETS_BYTES = 1, /* of UTF-8 */
  EB_OFFSETS_CODE_POINTS = 2,
  EB_OFFSETS_UTF16 = 3
} eb_offset_unit;

typedef enum eb_side {
  EB_SIDE_OF_TOKENIZER = 0, /* the one that the JSON names */
  EB_SIDE_RIGHT = 1,
  EB_SIDE_LEFT = 2
} eb_side;

/* Rows of one text, or of a pair of two. Text i is bytes text_bounds[i] .. text_bounds[i + 1] - 1 of data; row i has
 * texts row_bounds[i] .. row_bounds[i + 1] - 1. */
typedef struct eb_texts {
  const char* data;           /* UTF-8 */
  const int64_t* text_bounds; /* [texts + 1] */
  const int32_t* row_bounds;  /* [num_rows + 1], or NULL: each row is one text */
  int32_t num_rows;
} eb_texts;

typedef enum eb_long_texts {
  EB_LONG_DEFAULT = 0,   /* question answering: windows; else truncated */
  EB_LONG_TRUNCATED = 1, /* the end is left out, or what the file's tokenizer says */
  EB_LONG_WINDOWS = 2    /* windows with `stride` tokens in common, and one answer from all of them */
} eb_long_texts;

/* All zero is the default: whole rows with special tokens, no offsets. */
typedef struct eb_tokenize_options {
  int32_t max_length;        /* tokens a row has at most, special tokens included; 0: no limit */
  int32_t long_texts;        /* eb_long_texts: what is longer is truncated, or has windows of its last text */
  int32_t stride;            /* of EB_LONG_WINDOWS: tokens that a window has in common with the one before it */
  int32_t lowers_stride;     /* 1: where the first text of a pair leaves windows too few tokens for `stride`, they have
                                half of those in common; 0: such a pair is refused */
  int32_t cuts_last_text;    /* 0: of a pair the longer text gives way first; 1, and with windows: the last alone */
  int32_t side;              /* eb_side: where what is too long is cut off, or has its short window */
  int32_t no_special_tokens; /* 1: rows have the texts' tokens alone */
  int32_t offset_unit;       /* eb_offset_unit; with one, word_ids come too */
  int32_t num_threads;       /* 0: as eb_default_threads() */
} eb_tokenize_options;

/* What comes out: sequences as eb_batch takes them, one a row, or one a window. The arrays lie in one block, in this
 * order and without gaps. */
typedef struct eb_tokens {
  int32_t num_sequences;
  int32_t num_rows; /* of the input */
  int32_t total_tokens;
  const int32_t* input_ids;      /* [total_tokens] */
  const int32_t* token_type_ids; /* [total_tokens] */
  const int32_t* cu_seqlens;     /* [num_sequences + 1] */
  const int32_t* offsets;        /* [total_tokens, 2], begin and end in the text; 0, 0 for special tokens; or NULL */
  const int32_t* word_ids;       /* [total_tokens], counted in each text; -1 for special tokens; or NULL */
  const int32_t* rows;           /* [num_sequences], the input row that each is of */
  const int32_t* last_texts;     /* [num_sequences, 2], the tokens of each that are the last text's: first, and count */
  const int32_t* owned;          /* [num_sequences, 2], begin and end among those: the tokens that no other window
                                    shows with more text around; every token is owned once */
  const uint8_t* is_truncated;   /* [num_rows], whether tokens were cut off that no window has */
} eb_tokens;

typedef struct eb_tokenizer_info {
  int32_t vocab_size;     /* different tokens, added ones included */
  int32_t max_id;         /* the highest id of all: a model's word table needs a row more */
  int32_t unknown_id;     /* stands for what the vocabulary cannot spell; -1: none */
  int32_t side;           /* eb_side: the one that the JSON names for truncation */
  int32_t has_pair_types; /* 1: the second text of a pair has a type of its own */
  int32_t marks_subwords; /* 1: tokens that go on a word carry a mark, as WordPiece's ## */
  int32_t num_special_tokens;
  /* Special tokens by ascending id, [num_special_tokens]: their ids, and what texts may hold. Valid until
   * eb_tokenizer_free. */
  const int32_t* special_ids;
  const char* const* special_tokens;
} eb_tokenizer_info;

EB_API eb_status eb_tokenizer_load(const void* json, size_t size, eb_tokenizer** tokenizer);
EB_API void eb_tokenizer_free(eb_tokenizer* tokenizer);
/* The id of a token, as "[MASK]", that was added or is in the vocabulary; -1 for none. */
EB_API int32_t eb_tokenizer_find(const eb_tokenizer* tokenizer, const char* token);
EB_API eb_status eb_tokenizer_describe(const eb_tokenizer* tokenizer, eb_tokenizer_info* info);
/* options may be NULL for the default. The result is valid until eb_tokens_free. */
EB_API eb_status eb_tokenize(const eb_tokenizer* tokenizer, const eb_texts* texts, const eb_tokenize_options* options,
                             eb_tokens** tokens);
EB_API void eb_tokens_free(eb_tokens* tokens);

/* Text out. Each writes as many of the text's bytes as there is room for, UTF-8, and a 0 behind them; *size is how many
 * bytes the text has, without the 0: where it is not less than capacity, call again with more.
 *
 * The token of an id, an added one as normalizing leaves it; EB_INVALID_INPUT if there is none. */
EB_API eb_status eb_tokenizer_token(const eb_tokenizer* tokenizer, int32_t id, char* text, size_t capacity,
                                    size_t* size);
/* The text that the tokenizer's decoder makes of ids; those without a token are left out, and special ones if asked. */
EB_API eb_status eb_detokenize(const eb_tokenizer* tokenizer, const int32_t* ids, int32_t num_ids,
                               int32_t skips_special_tokens, char* text, size_t capacity, size_t* size);
/* The same of tokens as they stand in the vocabulary; token i is text i. */
EB_API eb_status eb_join_tokens(const eb_tokenizer* tokenizer, const eb_texts* tokens, char* text, size_t capacity,
                                size_t* size);

/* ---- Texts in, answers out ---- */

/* About a model. Strings are the model's; NULL for none. */
EB_API const char* eb_model_task(const eb_model* model);      /* of the file's head, as "embedding" */
EB_API int32_t eb_model_hidden_size(const eb_model* model);   /* of the encoder */
EB_API int32_t eb_model_max_length(const eb_model* model);    /* tokens at which texts are cut unless told otherwise */
EB_API int32_t eb_model_max_positions(const eb_model* model); /* tokens a sequence can have at most */
EB_API int32_t eb_model_num_outputs(const eb_model* model);   /* for eb_run */
EB_API const char* eb_model_output(const eb_model* model, int32_t index);      /* its name */
EB_API int32_t eb_model_output_width(const eb_model* model, const char* name); /* floats of a row; 0: no such output */
EB_API int32_t eb_model_num_labels(const eb_model* model);
EB_API const char* eb_model_label(const eb_model* model, int32_t label);
EB_API int32_t eb_model_find_label(const eb_model* model, const char* name); /* -1 for none */
/* The file's tokenizer, for eb_tokenize; it is the model's, and not to be freed. NULL where there is none, or one that
 * is refused: eb_last_error() says why. */
EB_API const eb_tokenizer* eb_model_tokenizer(const eb_model* model);

/* UTF-8 of so many bytes; with -1, up to a NUL. */
typedef struct eb_text {
  const char* data;
  int64_t size;
} eb_text;

/* All zero is the default. */
typedef struct eb_session_options {
  int32_t max_length;   /* tokens of a row or window, special tokens included; 0: the file's limit (question answering:
                           384 at most) */
  int32_t long_texts;   /* eb_long_texts */
  int32_t stride;       /* of EB_LONG_WINDOWS, else 0. The default of question answering has 128, half of max_length at
                           most; after a question that leaves a window fewer tokens, half of those */
  int32_t offset_unit;  /* eb_offset_unit of answers; 0: EB_OFFSETS_BYTES */
  int32_t batch_tokens; /* computed together, a matter of memory and speed, not of results; 0: 4096 */
} eb_session_options;

/* A session is one caller's place at a model: its settings, and all memory between texts and answers. What a call
 * returns is the session's, valid until its next call or eb_session_free. Once one as large was seen, in bytes
 * and in tokens, a call of one text allocates nothing. One thread at a time may call a session; each thread, its own
 * session, and they work side by side. A session is freed before its model, and a forked child opens sessions of its
 * own.
 *
 * Where the file has no tokenizer or one that is refused, opening one gives EB_UNSUPPORTED and the reason;
 * where the model was loaded with ids_only, EB_INVALID_INPUT. */
typedef struct eb_session eb_session;
EB_API eb_status eb_session_open(eb_model* model, const eb_session_options* options, eb_session** session);
EB_API void eb_session_free(eb_session* session);
/* From any thread: with 1 the running call ends with EB_CANCELLED when its batch is through, and later ones do at once,
 * until this is called with 0. */
EB_API void eb_session_cancel(eb_session* session, int32_t is_cancelled);

/* Calls take num_texts texts, 0 or more, and options that may be NULL for the defaults, as all zero. Each is refused
 * with EB_INVALID_INPUT where the file's head is another's. `is_truncated` says of each text whether tokens were cut
 * off. */

/* Sentence embeddings. */
typedef struct eb_embed_options {
  const char* prompt_name; /* one of the file's prompts, put before every text; NULL: the file's default */
  const char* prompt;      /* a prompt of one's own instead; "" for none */
  int32_t normalize;       /* 1: scale each to length 1, also where the file does not */
  int32_t width;           /* leading dimensions to keep; 0: all. Their length is 1 again only with normalize */
} eb_embed_options;
typedef struct eb_embeddings {
  int32_t num_texts, width;
  const float* data; /* [num_texts, width] */
  const uint8_t* is_truncated;
} eb_embeddings;
EB_API eb_status eb_embed(eb_session* session, const eb_text* texts, int32_t num_texts, const eb_embed_options* options,
                          eb_embeddings* embeddings);

/* From logits to scores. */
typedef enum eb_function {
  EB_FUNCTION_DEFAULT = 0, /* what the file asks for */
  EB_FUNCTION_NONE = 1,
  EB_FUNCTION_SIGMOID = 2,
  EB_FUNCTION_TANH = 3,
  EB_FUNCTION_SOFTMAX = 4
} eb_function;

/* Labels of texts, or of pairs where `pairs` is not NULL: pairs[i] then belongs to texts[i]. Files for next-sentence
 * prediction are asked so too, and take pairs alone. */
typedef struct eb_classify_options {
  int32_t top_k;    /* labels of each text, best first; 0: all */
  int32_t function; /* eb_function; next sentence: softmax always */
} eb_classify_options;
typedef struct eb_classes {
  int32_t num_texts, top_k;
  const int32_t* labels; /* [num_texts, top_k]: see eb_model_label */
  const float* scores;   /* [num_texts, top_k] */
  const uint8_t* is_truncated;
} eb_classes;
EB_API eb_status eb_classify(eb_session* session, const eb_text* texts, const eb_text* pairs, int32_t num_texts,
                             const eb_classify_options* options, eb_classes* classes);

/* Texts in the order a cross-encoder ranks them for a query. */
typedef struct eb_rank_options {
  const char* label; /* whose score ranks; needed where the file has several */
  int32_t top_k;     /* 0: all */
  int32_t function;  /* eb_function */
} eb_rank_options;
typedef struct eb_ranking {
  int32_t num_ranked;
  const int32_t* texts; /* [num_ranked], best first */
  const float* scores;  /* [num_ranked] */
  const uint8_t* is_truncated;
} eb_ranking;
EB_API eb_status eb_rank(eb_session* session, eb_text query, const eb_text* texts, int32_t num_texts,
                         const eb_rank_options* options, eb_ranking* ranking);

/* Labels of tokens, or of the entities they form. */
typedef enum eb_aggregation {
  EB_AGGREGATION_NONE = 0, /* tokens; not with EB_LONG_WINDOWS */
  EB_AGGREGATION_SIMPLE,   /* neighbours of one label, as the prefixes B- and I- say */
  EB_AGGREGATION_FIRST,    /* the same, of words that have the label of their first token, */
  EB_AGGREGATION_AVERAGE,  /* the best label on average over their tokens, */
  EB_AGGREGATION_MAX       /* or the label of the token with the best score */
} eb_aggregation;
typedef struct eb_label_options {
  int32_t aggregation;        /* eb_aggregation */
  const char* const* ignored; /* [num_ignored] labels of the file that are left out, of aggregated ones without B- or
                                 I-; NULL: "O" */
  int32_t num_ignored;        /* 0 where ignored is NULL */
} eb_label_options;
typedef struct eb_entity {
  const char* label; /* of aggregated ones without B- or I- */
  int32_t label_id;  /* see eb_model_label; of aggregated ones that of the first part */
  int32_t token;     /* its place in the row of tokens; -1 for aggregated ones */
  int32_t begin, end;
  double score;
} eb_entity;
typedef struct eb_entities {
  int32_t num_texts;
  const int32_t* bounds; /* [num_texts + 1]: text i has entities bounds[i] to bounds[i + 1] - 1 */
  const eb_entity* entities;
  const uint8_t* is_truncated;
} eb_entities;
EB_API eb_status eb_label_tokens(eb_session* session, const eb_text* texts, int32_t num_texts,
                                 const eb_label_options* options, eb_entities* entities);

/* Spans of a context that answer a question: questions[i] is asked of contexts[i], neither empty. A context without
 * tokens, as one of blanks, has "no answer" alone: with the score 0, or where that is allowed, 1. */
typedef struct eb_answer_options {
  int32_t top_k;             /* answers of each question, best first; fewer where there are fewer; 0: 1 */
  int32_t max_answer_tokens; /* 0: 15 */
  int32_t allows_no_answer;  /* 1: "no answer", with begin = end = 0, competes with the others */
  int32_t keeps_tokens;      /* 1: do not widen answers to whole words, as for text without blanks */
} eb_answer_options;
typedef struct eb_span {
  int32_t begin, end; /* in the context */
  double score;
} eb_span;
typedef struct eb_answers {
  int32_t num_questions;
  const int32_t* bounds; /* [num_questions + 1] */
  const eb_span* spans;
  const uint8_t* is_truncated;
} eb_answers;
EB_API eb_status eb_answer(eb_session* session, const eb_text* questions, const eb_text* contexts,
                           int32_t num_questions, const eb_answer_options* options, eb_answers* answers);

/* What may stand where texts have the tokenizer's mask token, "[MASK]" or "<mask>", each once or more. */
typedef struct eb_fill_options {
  int32_t top_k; /* 0: 5 */
} eb_fill_options;
typedef struct eb_fills {
  int32_t num_texts, top_k;
  const int32_t* bounds; /* [num_texts + 1]: the masks of each text, in their order */
  const int32_t* tokens; /* [num_masks, top_k] ids, likeliest first */
  const float* scores;   /* [num_masks, top_k] */
  const uint8_t* is_truncated;
} eb_fills;
EB_API eb_status eb_fill_mask(eb_session* session, const eb_text* texts, int32_t num_texts,
                              const eb_fill_options* options, eb_fills* fills);

#ifdef __cplusplus
}
#endif
#endif /* EDGEBERT_H_ */
