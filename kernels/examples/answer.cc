// Question answering: prints the parts of a text that answer a question, read from standard input.
//
//   answer MODEL QUESTION < TEXT
#include <edgebert.h>

#include <exception>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

// A session and its model, freed in the right order; failures are exceptions.
class Reader {
 public:
  explicit Reader(const char* path) {
    eb_model* model = nullptr;
    check(eb_load(path, nullptr, &model));
    model_.reset(model);
    eb_session* session = nullptr;
    check(eb_session_open(model, nullptr, &session));
    session_.reset(session);
  }

  // Valid until the next call.
  eb_answers answer(const std::string& question, const std::string& context, int top_k) {
    const eb_text texts[] = {{question.data(), static_cast<int64_t>(question.size())},
                             {context.data(), static_cast<int64_t>(context.size())}};
    eb_answer_options options = {};
    options.top_k = top_k;
    eb_answers answers;
    check(eb_answer(session_.get(), &texts[0], &texts[1], 1, &options, &answers));
    return answers;
  }

 private:
  struct Free {
    void operator()(eb_model* model) const { eb_free(model); }
    void operator()(eb_session* session) const { eb_session_free(session); }
  };
  static void check(eb_status status) {
    if (status != EB_OK) throw std::runtime_error(eb_last_error());
  }

  std::unique_ptr<eb_model, Free> model_;
  std::unique_ptr<eb_session, Free> session_;
};

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: answer MODEL QUESTION < TEXT\n";
    return 2;
  }
  try {
    const std::string context((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());
    Reader reader(argv[1]);
    const eb_answers answers = reader.answer(argv[2], context, 3);
    for (int i = answers.bounds[0]; i < answers.bounds[1]; ++i) {
      const eb_span& span = answers.spans[i];  // in bytes, unless the session's options say otherwise
      std::cout << span.score << "  " << context.substr(span.begin, span.end - span.begin) << '\n';
    }
  } catch (const std::exception& error) {
    std::cerr << "answer: " << error.what() << '\n';
    return 1;
  }
}
