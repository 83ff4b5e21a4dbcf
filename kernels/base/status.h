// Error: an exception that carries the C API's status code; c_api.cc turns it into a status and a message.
#pragma once

#include <stdexcept>
#include <string>

#include "edgebert.h"

namespace edgebert {

class Error : public std::runtime_error {
 public:
  Error(eb_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  eb_status status() const { return status_; }

 private:
  eb_status status_;
};

}  // namespace edgebert
