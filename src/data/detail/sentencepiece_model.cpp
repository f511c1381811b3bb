#include "data/detail/sentencepiece_model.hpp"

#include <bit>
#include <cstring>

#include "base/error.hpp"

namespace athanor::data::detail {
namespace {

/// One field of a message in protocol buffers' wire format.
struct Field {
  std::uint64_t number = 0;
  std::uint64_t integer = 0;  ///< of varint and fixed fields
  std::string_view bytes;     ///< of length-delimited fields
};

/// Goes over the fields of one message.
class Message {
 public:
  Message(std::string_view bytes, const std::string& path) : rest_(bytes), path_(path) {}

  bool next(Field& field) {
    if (rest_.empty()) {
      return false;
    }
    const std::uint64_t key = varint();
    field = {.number = key >> 3, .integer = 0, .bytes = {}};
    switch (key & 7) {
      case 0:
        field.integer = varint();
        break;
      case 1:
        field.integer = fixed(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        field.integer = fixed(4);
        break;
      default:
        fail();
    }
    return true;
  }

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) {
        return value;
      }
    }
    fail();
  }
  std::uint64_t fixed(std::size_t size) {
    std::uint64_t value = 0;
    std::memcpy(&value, take(size).data(), size);  // little-endian, as every machine this runs on
    return value;
  }
  std::string_view take(std::uint64_t size) {
    if (size > rest_.size()) {
      fail();
    }
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  [[noreturn]] void fail() const {
    throw base::DataError("{} is not a SentencePiece model (damaged or cut off) give a .model file", path_);
  }

  std::string_view rest_;
  const std::string& path_;
};

// The field numbers are those of sentencepiece_model.proto.
Piece parse_piece(std::string_view bytes, const std::string& path) {
  Message message(bytes, path);
  Piece piece;
  for (Field field; message.next(field);) {
    if (field.number == 1) {
      piece.text = field.bytes;
    } else if (field.number == 2) {
      piece.score = std::bit_cast<float>(static_cast<std::uint32_t>(field.integer));
    } else if (field.number == 3) {
      piece.kind = static_cast<PieceKind>(field.integer);
    }
  }
  return piece;
}

void parse_trainer(std::string_view bytes, const std::string& path, SentencePieceModel& model) {
  Message message(bytes, path);
  for (Field field; message.next(field);) {
    if (field.number == 3) {
      model.model_type = static_cast<std::int64_t>(field.integer);
    } else if (field.number == 24) {
      model.treat_whitespace_as_suffix = field.integer != 0;
    } else if (field.number == 35) {
      model.byte_fallback = field.integer != 0;
    }
  }
}

void parse_normalizer(std::string_view bytes, const std::string& path, SentencePieceModel& model) {
  Message message(bytes, path);
  for (Field field; message.next(field);) {
    if (field.number == 2) {
      model.character_map = field.bytes;
    } else if (field.number == 3) {
      model.add_dummy_prefix = field.integer != 0;
    } else if (field.number == 4) {
      model.remove_extra_whitespaces = field.integer != 0;
    } else if (field.number == 5) {
      model.escape_whitespaces = field.integer != 0;
    }
  }
}

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view bytes, const std::string& path) {
  Message message(bytes, path);
  SentencePieceModel model;
  for (Field field; message.next(field);) {
    if (field.number == 1) {
      model.pieces.push_back(parse_piece(field.bytes, path));
    } else if (field.number == 2) {
      parse_trainer(field.bytes, path, model);
    } else if (field.number == 3) {
      parse_normalizer(field.bytes, path, model);
    }
  }
  if (model.pieces.empty()) {
    throw base::DataError("{} is not a SentencePiece model (it has no pieces) give a .model file", path);
  }
  return model;
}

}  // namespace athanor::data::detail
