// What a SentencePiece model file says: the parts of its protocol buffer that another program needs to give
// the same ids. SentencePiece's own interface does not tell all of them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace athanor::data::detail {

enum class PieceKind { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

struct Piece {
  std::string text;
  float score = 0.0F;
  PieceKind kind = PieceKind::normal;
};

struct SentencePieceModel {
  std::vector<Piece> pieces;
  std::int64_t model_type = 1;  ///< 1 unigram, 2 bpe, 3 word, 4 char
  bool byte_fallback = false;
  bool treat_whitespace_as_suffix = false;
  std::string character_map;  ///< precompiled normalisation; empty: identity
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

/// Throws DataError (`path` is for messages) when the bytes are no such protocol buffer.
SentencePieceModel parse_sentencepiece_model(std::string_view bytes, const std::string& path);

}  // namespace athanor::data::detail
