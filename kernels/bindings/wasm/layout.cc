// What engine.js takes for granted: on wasm32 the structs of edgebert.h are words of 32 bits without gaps, but for
// those named here. Nothing of this is linked.
#include <cstddef>

#include "edgebert.h"

#define EB_WORDS(type, words) static_assert(sizeof(type) == 4 * (words), #type)
#define EB_WORD_OF(type, field, word) static_assert(offsetof(type, field) == 4 * (word), #type "." #field)

EB_WORDS(eb_options, 7);
EB_WORD_OF(eb_options, num_threads, 1);
EB_WORD_OF(eb_options, public_key, 4);
EB_WORD_OF(eb_options, full_depth, 6);
EB_WORDS(eb_session_options, 5);
EB_WORD_OF(eb_session_options, offset_unit, 3);

EB_WORDS(eb_text, 4);
EB_WORD_OF(eb_text, size, 2);  // of 64 bits
EB_WORDS(eb_texts, 4);
EB_WORD_OF(eb_texts, num_rows, 3);
EB_WORDS(eb_tokenize_options, 9);
EB_WORD_OF(eb_tokenize_options, long_texts, 1);
EB_WORD_OF(eb_tokenize_options, no_special_tokens, 6);
EB_WORD_OF(eb_tokenize_options, offset_unit, 7);
EB_WORDS(eb_tokens, 12);
EB_WORD_OF(eb_tokens, input_ids, 3);
EB_WORD_OF(eb_tokens, is_truncated, 11);

EB_WORDS(eb_embed_options, 4);
EB_WORDS(eb_embeddings, 4);
EB_WORD_OF(eb_embeddings, data, 2);
EB_WORDS(eb_classify_options, 2);
EB_WORDS(eb_classes, 5);
EB_WORD_OF(eb_classes, scores, 3);
EB_WORDS(eb_rank_options, 3);
EB_WORDS(eb_ranking, 4);
EB_WORD_OF(eb_ranking, scores, 2);
EB_WORDS(eb_label_options, 3);
EB_WORDS(eb_entities, 4);
EB_WORDS(eb_entity, 8);
EB_WORD_OF(eb_entity, begin, 3);
EB_WORD_OF(eb_entity, score, 6);  // of 64 bits
EB_WORDS(eb_answer_options, 4);
EB_WORDS(eb_answers, 4);
EB_WORDS(eb_span, 4);
EB_WORD_OF(eb_span, score, 2);  // of 64 bits
