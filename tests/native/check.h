// Assertions for the native tests: a failed one prints where and what, and the test exits with 1.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/status.h"

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (false)

// Expects `statement` to throw edgebert::Error with this status and a message that holds `text`.
#define CHECK_ERROR(statement, expected_status, text)                                              \
  do {                                                                                             \
    std::string got_message = "no error";                                                          \
    eb_status got_status = EB_OK;                                                                  \
    try {                                                                                          \
      (void)(statement);                                                                           \
    } catch (const edgebert::Error& error) {                                                       \
      got_message = error.what();                                                                  \
      got_status = error.status();                                                                 \
    }                                                                                              \
    if (got_status != (expected_status) || got_message.find(text) == std::string::npos) {          \
      std::fprintf(stderr, "%s:%d: expected an error with '%s', got %d: %s\n", __FILE__, __LINE__, \
                   std::string(text).c_str(), got_status, got_message.c_str());                    \
      std::exit(1);                                                                                \
    }                                                                                              \
  } while (false)
