// What a tokenizer's handle holds.
#pragma once

#include <string_view>

#include "edgebert.h"
#include "text/tokenizer.h"

struct eb_tokenizer {
  explicit eb_tokenizer(std::string_view json) : tokenizer(json) {}

  const edgebert::text::Tokenizer tokenizer;
};
