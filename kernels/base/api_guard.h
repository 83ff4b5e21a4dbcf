// What every function of the C API does with exceptions: none leaves it.
#pragma once

#include <new>
#include <string>

#include "base/status.h"
#include "edgebert.h"

namespace edgebert {

// Keeps the message for eb_last_error() of this thread, and returns the status.
eb_status report(eb_status status, const char* message) noexcept;

// Runs `body`; an exception becomes a status and the thread's last error.
template <typename Body>
eb_status guard(const Body& body) noexcept {
  try {
    body();
    return EB_OK;
  } catch (const Error& error) {
    return report(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return report(EB_OUT_OF_MEMORY, "out of memory: use smaller batches, or a smaller model");
  } catch (const std::exception& error) {
    return report(EB_INTERNAL, error.what());
  } catch (...) {
    return report(EB_INTERNAL, "an unknown error");
  }
}

[[noreturn]] inline void fail(const std::string& what) { throw Error(EB_INVALID_INPUT, what); }

}  // namespace edgebert
