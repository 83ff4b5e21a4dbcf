/* Semantic search over a text file: prints the five lines that are nearest in meaning.
 *
 *   search MODEL TEXTS QUERY
 */
#include <edgebert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kMaxLine = 1 << 14, kBest = 5 };

static void check(eb_status status) {
  if (status == EB_OK) return;
  fprintf(stderr, "search: %s\n", eb_last_error());
  exit(1);
}

static float dot(const float* a, const float* b, int32_t width) {
  float sum = 0;
  for (int32_t i = 0; i < width; ++i) sum += a[i] * b[i];
  return sum;
}

int main(int argc, char** argv) {
  static char line[kMaxLine], best_lines[kBest + 1][kMaxLine];
  float best[kBest] = {-2, -2, -2, -2, -2};
  eb_model* model;
  eb_session *for_query, *for_lines;             /* what a call returns is valid until the next call of its session */
  eb_embed_options options = {NULL, NULL, 1, 0}; /* of length 1, so that the dot product is the cosine */
  eb_embeddings query, found;
  if (argc != 4) {
    fprintf(stderr, "usage: search MODEL TEXTS QUERY\n");
    return 2;
  }
  FILE* file = fopen(argv[2], "r");
  if (file == NULL) {
    perror(argv[2]);
    return 1;
  }
  check(eb_load(argv[1], NULL, &model));
  check(eb_session_open(model, NULL, &for_query));
  check(eb_session_open(model, NULL, &for_lines));
  const eb_text query_text = {argv[3], -1};
  check(eb_embed(for_query, &query_text, 1, &options, &query));
  while (fgets(line, sizeof line, file) != NULL) {
    line[strcspn(line, "\r\n")] = '\0';
    const eb_text text = {line, -1};
    check(eb_embed(for_lines, &text, 1, &options, &found));
    const float score = dot(query.data, found.data, query.width);
    int place = kBest; /* moves up past what is not as near */
    for (; place > 0 && score > best[place - 1]; --place) {
      if (place < kBest) best[place] = best[place - 1];
      memcpy(best_lines[place], best_lines[place - 1], kMaxLine);
    }
    if (place == kBest) continue;
    best[place] = score;
    memcpy(best_lines[place], line, kMaxLine);
  }
  for (int i = 0; i < kBest && best[i] > -2; ++i) printf("%.4f  %s\n", (double)best[i], best_lines[i]);
  fclose(file);
  eb_session_free(for_lines);
  eb_session_free(for_query);
  eb_free(model);
  return 0;
}
