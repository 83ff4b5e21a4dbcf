/* EdgeBERT C API: one file in, packed batches through, arrays out. Valid C99.
 *
 * Two libraries have it: libedgebert runs on CPUs, libedgebert_cuda on NVIDIA GPUs.
 * Every call returns a status; eb_last_error() gives the message of the last failed call of the calling thread.
 * A model may be used from several threads: runs on one model take turns. A forked child may use and free it too,
 * whatever other threads were doing at the fork; with libedgebert_cuda it gets EB_UNAVAILABLE, and must load its own.
 */
#ifndef EDGEBERT_H_
#define EDGEBERT_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EB_API __declspec(dllexport)
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
  EB_INTERNAL = 6
} eb_status;

typedef struct eb_model eb_model;

typedef struct eb_options {
  const char* isa;     /* NULL: EDGEBERT_FORCE_ISA if set, else the best this CPU has */
  int32_t num_threads; /* 0: the CPUs this process may use (affinity, cgroup quota) */
  int32_t device;      /* libedgebert_cuda: which GPU; libedgebert: 0 */
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
  size_t capacity; /* floats that fit in data; a smaller need is fine, a larger one EB_INVALID_INPUT */
} eb_output;

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
/* The bytes must stay valid and unchanged until eb_free. */
EB_API eb_status eb_load_memory(const void* data, size_t size, const eb_options* options, eb_model** model);
EB_API void eb_free(eb_model* model);

EB_API const char* eb_model_isa(const eb_model* model);
EB_API int32_t eb_model_threads(const eb_model* model);
/* Bytes the model holds for activations; flat once the largest batch was seen. */
EB_API size_t eb_model_workspace_bytes(const eb_model* model);
EB_API eb_status eb_run(eb_model* model, const eb_batch* batch, eb_output* outputs, int32_t num_outputs);

#ifdef __cplusplus
}
#endif
#endif /* EDGEBERT_H_ */
