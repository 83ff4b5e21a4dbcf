// Texts in, answers out: a model, sessions of it, and a call for each task. Places are in bytes of UTF-8.
import CEdgeBert

/// A call that failed: `status` is of `eb_status`.
public struct EdgeBertError: Error, CustomStringConvertible {
  public let status: UInt32
  public let description: String
}

private func check(_ status: eb_status) throws {
  guard status != EB_OK else { return }
  throw EdgeBertError(status: UInt32(status.rawValue), description: String(cString: eb_last_error()))
}

private func refuse(_ description: String) -> EdgeBertError {
  EdgeBertError(status: UInt32(EB_INVALID_INPUT.rawValue), description: description)
}

/// A model file that is loaded. Any thread may use it; texts go through its sessions.
public final class Model {
  let handle: OpaquePointer

  /// - Parameters:
  ///   - threads: 0: the CPUs this process may use.
  ///   - verify: whether the file's content is compared with its hash too.
  ///   - publicKey: the Ed25519 key, of 32 bytes, that the file must be signed with.
  public init(path: String, threads: Int32 = 0, verify: Bool = false, publicKey: [UInt8]? = nil) throws {
    if let key = publicKey, key.count != 32 { throw refuse("publicKey has \(key.count) bytes, expected 32") }
    if path.utf8.contains(0) { throw refuse("path holds a NUL character") }
    var model: OpaquePointer?
    try (publicKey ?? []).withUnsafeBufferPointer { key in
      var options = eb_options()
      options.num_threads = threads
      options.verify = verify ? 1 : 0
      options.public_key = publicKey == nil ? nil : key.baseAddress
      try check(eb_load(path, &options, &model))
    }
    handle = model!
  }

  deinit { eb_free(handle) }

  /// Of the file's head, as "embedding".
  public var task: String { String(cString: eb_model_task(handle)) }
  public var hiddenSize: Int { Int(eb_model_hidden_size(handle)) }
  public var maxLength: Int { Int(eb_model_max_length(handle)) }
  public var labels: [String] {
    (0..<eb_model_num_labels(handle)).map { String(cString: eb_model_label(handle, $0)) }
  }
}

public struct Label {
  public let label: String
  public let score: Float
}

public struct Ranked {
  /// The text's place in the list.
  public let index: Int
  public let score: Float
}

public struct Entity {
  public let label: String
  public let score: Double
  /// The token's place in its row; -1 for aggregated ones.
  public let token: Int
  public let begin: Int
  public let end: Int
}

public struct Span {
  public let score: Double
  public let begin: Int
  public let end: Int
}

/// One caller's place at a model, which it keeps. One thread at a time may call it.
public final class Session {
  private let model: Model
  private let handle: OpaquePointer
  /// Whether tokens of each text of the last call were cut off.
  public private(set) var isTruncated: [Bool] = []

  /// - Parameters:
  ///   - maxLength: tokens of a row or window; 0: the file's limit.
  ///   - stride: not nil: texts that are too long are read in windows with so many tokens in common.
  public init(_ model: Model, maxLength: Int32 = 0, stride: Int32? = nil) throws {
    var options = eb_session_options()
    options.max_length = maxLength
    options.long_texts = stride == nil ? 0 : Int32(EB_LONG_WINDOWS.rawValue)
    options.stride = stride ?? 0
    var session: OpaquePointer?
    try check(eb_session_open(model.handle, &options, &session))
    self.model = model
    handle = session!
  }

  deinit { eb_session_free(handle) }

  /// From any thread: true ends the running call, and later ones until it is false.
  public func cancel(_ isCancelled: Bool) { eb_session_cancel(handle, isCancelled ? 1 : 0) }

  /// A row for each text. `prompt` nil: the file's default.
  public func embed(_ texts: [String], prompt: String? = nil, normalize: Bool = false, width: Int32 = 0) throws
    -> [[Float]]
  {
    var found = eb_embeddings()
    try withTexts(texts) { given, count in
      try withOptional(prompt) { own in
        var options = eb_embed_options()
        options.prompt = own
        options.normalize = normalize ? 1 : 0
        options.width = width
        try check(eb_embed(handle, given, count, &options, &found))
      }
    }
    keep(found.is_truncated, found.num_texts)
    let width = Int(found.width)
    return (0..<Int(found.num_texts)).map {
      Array(UnsafeBufferPointer(start: found.data + $0 * width, count: width))
    }
  }

  /// Of each text, or of each text and its pair, the labels, best first; `topK` 0: all.
  public func classify(_ texts: [String], pairs: [String]? = nil, topK: Int32 = 0) throws -> [[Label]] {
    if let pairs = pairs { try sameCount(texts, pairs) }
    var found = eb_classes()
    var options = eb_classify_options()
    options.top_k = topK
    try withTexts(texts) { given, count in
      try withTexts(pairs ?? []) { second, _ in
        try check(eb_classify(handle, given, pairs == nil ? nil : second, count, &options, &found))
      }
    }
    keep(found.is_truncated, found.num_texts)
    let labels = model.labels, k = Int(found.top_k)
    return (0..<Int(found.num_texts)).map { i in
      (i * k..<(i + 1) * k).map { Label(label: labels[Int(found.labels[$0])], score: found.scores[$0]) }
    }
  }

  /// The texts, best first; `label`, whose score ranks, is needed where the file has several.
  public func rank(_ query: String, _ texts: [String], label: String? = nil, topK: Int32 = 0) throws -> [Ranked] {
    var found = eb_ranking()
    try withTexts([query]) { asked, _ in
      try withTexts(texts) { given, count in
        try withOptional(label) { name in
          var options = eb_rank_options()
          options.label = name
          options.top_k = topK
          try check(eb_rank(handle, asked[0], given, count, &options, &found))
        }
      }
    }
    keep(found.is_truncated, Int32(texts.count))
    return (0..<Int(found.num_ranked)).map { Ranked(index: Int(found.texts[$0]), score: found.scores[$0]) }
  }

  /// Of each text its tokens, or the entities that they form; those labelled "O" are left out.
  public func labelTokens(_ texts: [String], aggregation: eb_aggregation = EB_AGGREGATION_SIMPLE) throws -> [[Entity]] {
    var found = eb_entities()
    var options = eb_label_options()
    options.aggregation = Int32(aggregation.rawValue)
    try withTexts(texts) { given, count in try check(eb_label_tokens(handle, given, count, &options, &found)) }
    keep(found.is_truncated, found.num_texts)
    return groups(found.bounds, found.num_texts) { k in
      let entity = found.entities[k]
      return Entity(
        label: String(cString: entity.label), score: entity.score, token: Int(entity.token), begin: Int(entity.begin),
        end: Int(entity.end))
    }
  }

  /// Of each question the parts of its context that answer it, best first.
  public func answer(_ questions: [String], _ contexts: [String], topK: Int32 = 1, allowsNoAnswer: Bool = false) throws
    -> [[Span]]
  {
    try sameCount(questions, contexts)
    var found = eb_answers()
    var options = eb_answer_options()
    options.top_k = topK
    options.allows_no_answer = allowsNoAnswer ? 1 : 0
    try withTexts(questions) { asked, count in
      try withTexts(contexts) { given, _ in try check(eb_answer(handle, asked, given, count, &options, &found)) }
    }
    keep(found.is_truncated, found.num_questions)
    return groups(found.bounds, found.num_questions) { k in
      let span = found.spans[k]
      return Span(score: span.score, begin: Int(span.begin), end: Int(span.end))
    }
  }

  private func keep(_ told: UnsafePointer<UInt8>?, _ count: Int32) {
    isTruncated = UnsafeBufferPointer(start: told, count: told == nil ? 0 : Int(count)).map { $0 != 0 }
  }

  private func groups<Item>(_ bounds: UnsafePointer<Int32>?, _ count: Int32, _ item: (Int) -> Item) -> [[Item]] {
    (0..<Int(count)).map { i in (Int(bounds![i])..<Int(bounds![i + 1])).map(item) }
  }

  private func sameCount(_ texts: [String], _ others: [String]) throws {
    if texts.count != others.count { throw refuse("\(others.count) texts for \(texts.count)") }
  }
}

/// Calls `body` with the texts as C takes them, valid until it returns.
private func withTexts(_ texts: [String], _ body: (UnsafePointer<eb_text>, Int32) throws -> Void) throws {
  var bytes: [UInt8] = []
  var ends: [Int] = []
  for text in texts {
    bytes.append(contentsOf: text.utf8)
    ends.append(bytes.count)
  }
  bytes.append(0)  // so that there is an address where there are no texts
  try bytes.withUnsafeBytes { raw in
    let start = raw.bindMemory(to: CChar.self).baseAddress!
    var begin = 0
    var given: [eb_text] = []
    for end in ends {
      given.append(eb_text(data: start + begin, size: Int64(end - begin)))
      begin = end
    }
    given.append(eb_text(data: start, size: 0))  // the same
    try given.withUnsafeBufferPointer { try body($0.baseAddress!, Int32(texts.count)) }
  }
}

/// Calls `body` with a C string, or nil.
private func withOptional(_ text: String?, _ body: (UnsafePointer<CChar>?) throws -> Void) throws {
  guard let text = text else { return try body(nil) }
  if text.utf8.contains(0) { throw refuse("a name or prompt holds a NUL character") }
  try text.withCString { try body($0) }
}
