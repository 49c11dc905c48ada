// A model's own tokenizer, read from the tokenizer.json in its directory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lm::tokenizers {

/// As everywhere in these programs.
using token_id = std::int32_t;

/// Whether encode() puts the tokens around a text that the file asks for, such as the begin of a text.
enum class surround { yes, no };

/// Whether decode() leaves out the tokens that the file calls special.
enum class skip_special { no, yes };

/// What tokenizer.json of Hugging Face describes: added tokens, a normalizer, a pre-tokenizer, BPE or
/// Unigram, a post-processor and a decoder. The ids are those of their library `tokenizers`. Truncation and
/// padding, which are about batches, are left to the caller.
///
///     auto const words = lm::tokenizers::tokenizer::load("Llama-3.2-1B");
///     auto const ids = words.encode("Hello, world");
///     auto text = words.start_decoding();
///     for (auto const id : ids) std::cout << text.add(id);
///     std::cout << text.finish();
class tokenizer {
  struct parts;
  std::shared_ptr<parts const> parts_;
  explicit tokenizer(std::shared_ptr<parts const> p);

 public:
  /// Reads tokenizer.json in this directory. Throws gptq::error, with the file and the key, for a file that
  /// cannot be read, and for everything in it that is not understood: types, keys and values.
  static tokenizer load(std::filesystem::path const& directory);

  /// The same for the contents of such a file.
  /// @param name  of the file, for errors
  static tokenizer parse(std::string_view json, std::string const& name);

  /// The tokens of a text. Throws gptq::error for text that is not valid UTF-8, with the position, and for
  /// characters that no token stands for where the model has none for the unknown. May be called from several
  /// threads; one at a time finds what the calls before it have remembered.
  std::vector<token_id> encode(std::string_view text, surround s = surround::yes) const;

  /// What a text is cut into before the model makes tokens of it, normalized and as the pre-tokenizer writes
  /// it, and the added tokens in it: what sets one pre-tokenizer apart from another, whatever the vocabulary.
  /// Throws as encode().
  std::vector<std::string> pieces(std::string_view text) const;

  /// The text of tokens, valid UTF-8. Ids that no token has stand for nothing.
  std::string decode(std::span<token_id const> ids, skip_special s = skip_special::no) const;

  /// Text from tokens as they come. What add() and then finish() return is together what decode() returns,
  /// each part valid UTF-8: an unfinished character waits for its other bytes.
  class stream {
    struct state;
    std::shared_ptr<state> state_;
    friend class tokenizer;
    explicit stream(std::shared_ptr<state> s);

   public:
    std::string add(token_id id);
    std::string finish();
  };
  stream start_decoding(skip_special s = skip_special::no) const;

  /// What the file puts before a text and after it.
  std::vector<token_id> const& before() const;
  std::vector<token_id> const& after() const;

  /// One more than the highest id.
  token_id size() const;
  /// The token with this text, as it is in the file.
  std::optional<token_id> find(std::string_view text) const;
  /// The text of a token, as it is in the file, or nullptr.
  std::string const* text(token_id id) const;
  bool is_special(token_id id) const;
};

}  // namespace lm::tokenizers
