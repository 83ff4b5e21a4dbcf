/* Prints the bits of an output, so that builds for different processors can be compared:
 *
 *   print_outputs MODEL OUTPUT < IDS
 *
 * Every line of IDS is one sequence of token ids; all of them are run as one batch. One float a line, its bits in
 * hexadecimal.
 */
#include <edgebert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kMaxTokens = 1 << 14, kMaxSequences = 1 << 10, kCapacity = 1 << 24 };

static int32_t input_ids[kMaxTokens], cu_seqlens[kMaxSequences + 1];

static void fail(const char* what) {
  fprintf(stderr, "print_outputs: %s\n", what);
  exit(1);
}

int main(int argc, char** argv) {
  eb_batch batch = {input_ids, NULL, cu_seqlens, 0, NULL, 0};
  eb_output output = {argc == 3 ? argv[2] : NULL, malloc(kCapacity * sizeof(float)), kCapacity};
  eb_model* model;
  static char line[1 << 16];
  int32_t total_tokens = 0;
  size_t count = kCapacity, i;
  if (argc != 3) fail("usage: print_outputs MODEL OUTPUT < IDS");
  while (batch.num_sequences < kMaxSequences && fgets(line, sizeof line, stdin) != NULL) {
    const char* word;
    for (word = strtok(line, " \n"); word != NULL && total_tokens < kMaxTokens; word = strtok(NULL, " \n"))
      input_ids[total_tokens++] = atoi(word);
    cu_seqlens[++batch.num_sequences] = total_tokens;
  }
  for (i = 0; i < kCapacity; ++i) output.data[i] = NAN;
  if (eb_load(argv[1], NULL, &model) != EB_OK || eb_run(model, &batch, &output, 1) != EB_OK) fail(eb_last_error());
  fprintf(stderr, "%s, %d threads\n", eb_model_isa(model), (int)eb_model_threads(model));
  while (count > 0 && isnan(output.data[count - 1])) --count; /* what the model has not written */
  for (i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, &output.data[i], sizeof bits);
    printf("%08lx\n", (unsigned long)bits);
  }
  eb_free(model);
  free(output.data);
  return 0;
}
