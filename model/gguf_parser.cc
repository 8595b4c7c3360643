#include "model/gguf_parser.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/gguf_cursor.h"

namespace millrace {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint32_t kVersion = 3;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint32_t kMaxDimensions = 4;
// The least a metadata pair and a tensor description take in the file.
constexpr uint64_t kMinPairBytes = 8 + 1 + 4 + 1;
constexpr uint64_t kMinDescriptionBytes = 8 + 1 + 4 + 8 + 4 + 8;

// Value types of metadata, numbered as in the file.
enum class ValueType : uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

template <typename Stored, typename Kept>
absl::StatusOr<GgufValue> ReadNumber(GgufCursor& cursor) {
  ASSIGN_OR_RETURN(const Stored value, cursor.Read<Stored>("value"));
  return GgufValue(static_cast<Kept>(value));
}

absl::StatusOr<bool> ReadBool(GgufCursor& cursor) {
  ASSIGN_OR_RETURN(const uint8_t value, cursor.Read<uint8_t>("bool value"));
  if (value > 1) {
    return cursor.Error(
        absl::StrCat("bool value at byte ", cursor.offset() - 1, " is ", value, ", not 0 or 1"));
  }
  return value == 1;
}

// REQUIRES: `count` elements are within the file.
template <typename Stored, typename Kept>
absl::StatusOr<GgufArray> ReadNumbers(GgufCursor& cursor, uint64_t count) {
  std::vector<Kept> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const Stored value, cursor.Read<Stored>("array element"));
    values.push_back(static_cast<Kept>(value));
  }
  return GgufArray(std::move(values));
}

absl::StatusOr<GgufArray> ReadBools(GgufCursor& cursor, uint64_t count) {
  std::vector<bool> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const bool value, ReadBool(cursor));
    values.push_back(value);
  }
  return GgufArray(std::move(values));
}

absl::StatusOr<GgufArray> ReadStrings(GgufCursor& cursor, uint64_t count) {
  std::vector<absl::string_view> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const absl::string_view value, cursor.ReadString("array element", kMaxGgufHeaderBytes));
    values.push_back(value);
  }
  return GgufArray(std::move(values));
}

// Bytes an element takes in the file at least; 0 for what cannot be an element.
uint64_t MinElementBytes(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    case ValueType::kString:  // its length
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64:
      return 8;
    case ValueType::kArray:
      break;
  }
  return 0;
}

absl::StatusOr<GgufArray> ReadElements(GgufCursor& cursor, ValueType type, uint64_t count) {
  switch (type) {
    case ValueType::kUint8:
      return ReadNumbers<uint8_t, uint64_t>(cursor, count);
    case ValueType::kInt8:
      return ReadNumbers<int8_t, int64_t>(cursor, count);
    case ValueType::kUint16:
      return ReadNumbers<uint16_t, uint64_t>(cursor, count);
    case ValueType::kInt16:
      return ReadNumbers<int16_t, int64_t>(cursor, count);
    case ValueType::kUint32:
      return ReadNumbers<uint32_t, uint64_t>(cursor, count);
    case ValueType::kInt32:
      return ReadNumbers<int32_t, int64_t>(cursor, count);
    case ValueType::kFloat32:
      return ReadNumbers<float, double>(cursor, count);
    case ValueType::kBool:
      return ReadBools(cursor, count);
    case ValueType::kString:
      return ReadStrings(cursor, count);
    case ValueType::kUint64:
      return ReadNumbers<uint64_t, uint64_t>(cursor, count);
    case ValueType::kInt64:
      return ReadNumbers<int64_t, int64_t>(cursor, count);
    case ValueType::kFloat64:
      return ReadNumbers<double, double>(cursor, count);
    case ValueType::kArray:
      break;
  }
  return cursor.Error("an array of this element type cannot be read");
}

// `array_budget`: how many more array elements the file may hold; taken from.
absl::StatusOr<GgufValue> ReadArray(GgufCursor& cursor, uint64_t& array_budget) {
  ASSIGN_OR_RETURN(const uint32_t type_number, cursor.Read<uint32_t>("array element type"));
  ASSIGN_OR_RETURN(const uint64_t count, cursor.Read<uint64_t>("array length"));
  const auto type = static_cast<ValueType>(type_number);
  if (type == ValueType::kArray) {
    return cursor.Error(absl::StrCat("an array of arrays at byte ", cursor.offset() - 12,
                                     "; nested arrays are not supported"));
  }
  const uint64_t element_bytes = MinElementBytes(type);
  if (element_bytes == 0) {
    return cursor.Error(absl::StrCat("unknown array element type ", type_number, " at byte ",
                                     cursor.offset() - 12, "; known are 0 to 12"));
  }
  if (count > array_budget) {
    return cursor.Error(absl::StrCat("array length at byte ", cursor.offset() - 8, " is ", count,
                                     "; the arrays of a file may have ", kMaxGgufArrayElements,
                                     " elements in all, ", array_budget, " are left"));
  }
  // Far from overflow: the count is within the budget.
  if (count * element_bytes > cursor.remaining()) return cursor.Short(count * element_bytes, "array");
  array_budget -= count;
  ASSIGN_OR_RETURN(GgufArray array, ReadElements(cursor, type, count));
  return GgufValue(std::move(array));
}

absl::StatusOr<GgufValue> ReadValue(GgufCursor& cursor, uint64_t& array_budget) {
  ASSIGN_OR_RETURN(const uint32_t type_number, cursor.Read<uint32_t>("value type"));
  switch (static_cast<ValueType>(type_number)) {
    case ValueType::kUint8:
      return ReadNumber<uint8_t, uint64_t>(cursor);
    case ValueType::kInt8:
      return ReadNumber<int8_t, int64_t>(cursor);
    case ValueType::kUint16:
      return ReadNumber<uint16_t, uint64_t>(cursor);
    case ValueType::kInt16:
      return ReadNumber<int16_t, int64_t>(cursor);
    case ValueType::kUint32:
      return ReadNumber<uint32_t, uint64_t>(cursor);
    case ValueType::kInt32:
      return ReadNumber<int32_t, int64_t>(cursor);
    case ValueType::kFloat32:
      return ReadNumber<float, double>(cursor);
    case ValueType::kBool: {
      ASSIGN_OR_RETURN(const bool value, ReadBool(cursor));
      return GgufValue(value);
    }
    case ValueType::kString: {
      ASSIGN_OR_RETURN(const absl::string_view text, cursor.ReadString("string value", kMaxGgufHeaderBytes));
      return GgufValue(text);
    }
    case ValueType::kArray:
      return ReadArray(cursor, array_budget);
    case ValueType::kUint64:
      return ReadNumber<uint64_t, uint64_t>(cursor);
    case ValueType::kInt64:
      return ReadNumber<int64_t, int64_t>(cursor);
    case ValueType::kFloat64:
      return ReadNumber<double, double>(cursor);
  }
  return cursor.Error(absl::StrCat("unknown value type ", type_number, " at byte ", cursor.offset() - 4,
                                   "; known are 0 to 12"));
}

struct Counts {
  uint64_t tensors;
  uint64_t metadata_pairs;
};

absl::Status CheckVersion(const GgufCursor& cursor, uint32_t version) {
  if (version == kVersion) return absl::OkStatus();
  if (version == __builtin_bswap32(kVersion)) {
    return cursor.Error(
        "a big-endian GGUF file; only little-endian ones can be read: convert the model again");
  }
  if (version == 1 || version == 2) {
    return cursor.Error(absl::StrCat("GGUF version ", version, " at byte 4; only version ", kVersion,
                                     " can be read: convert the model again with a current converter"));
  }
  return cursor.Error(
      absl::StrCat("unknown GGUF version ", version, " at byte 4; only version ", kVersion, " can be read"));
}

absl::StatusOr<Counts> ReadPreamble(GgufCursor& cursor) {
  ASSIGN_OR_RETURN(const uint32_t magic, cursor.Read<uint32_t>("magic"));
  if (magic != kMagic) {
    char text[sizeof(magic)];
    std::memcpy(text, &magic, sizeof(magic));
    return cursor.Error(absl::StrCat("not a GGUF file: it begins with '",
                                     absl::CHexEscape(absl::string_view(text, sizeof(text))),
                                     "', not 'GGUF'"));
  }
  ASSIGN_OR_RETURN(const uint32_t version, cursor.Read<uint32_t>("version"));
  RETURN_IF_ERROR(CheckVersion(cursor, version));
  Counts counts;
  ASSIGN_OR_RETURN(counts.tensors, cursor.Read<uint64_t>("number of tensors"));
  ASSIGN_OR_RETURN(counts.metadata_pairs, cursor.Read<uint64_t>("number of metadata pairs"));
  if (counts.tensors > kMaxGgufTensors) {
    return cursor.Error(
        absl::StrCat("number of tensors at byte 8 is ", counts.tensors, ", the limit is ", kMaxGgufTensors));
  }
  if (counts.metadata_pairs > kMaxGgufMetadataPairs) {
    return cursor.Error(absl::StrCat("number of metadata pairs at byte 16 is ", counts.metadata_pairs,
                                     ", the limit is ", kMaxGgufMetadataPairs));
  }
  const uint64_t least = counts.metadata_pairs * kMinPairBytes + counts.tensors * kMinDescriptionBytes;
  if (least > cursor.remaining()) return cursor.Short(least, "metadata and tensor descriptions");
  return counts;
}

absl::Status ReadMetadata(GgufCursor& cursor, uint64_t pairs, GgufContents& contents) {
  uint64_t array_budget = kMaxGgufArrayElements;
  contents.metadata.reserve(pairs);
  for (uint64_t i = 0; i < pairs; ++i) {
    const std::string number = absl::StrCat(i + 1, " of ", pairs);
    cursor.SetPlace("metadata pair", number);
    ASSIGN_OR_RETURN(const absl::string_view key, cursor.ReadString("key", kMaxGgufKeyBytes));
    if (key.empty()) return cursor.Error(absl::StrCat("empty key at byte ", cursor.offset() - 8));
    cursor.SetPlace("metadata key", key);
    if (contents.metadata.contains(key)) {
      return cursor.Error(absl::StrCat("appears twice, the second time before byte ", cursor.offset()));
    }
    ASSIGN_OR_RETURN(GgufValue value, ReadValue(cursor, array_budget));
    contents.metadata.emplace(key, std::move(value));
  }
  cursor.SetPlace("", "");
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ReadAlignment(const GgufCursor& cursor, const GgufContents& contents) {
  const auto found = contents.metadata.find("general.alignment");
  if (found == contents.metadata.end()) return kDefaultAlignment;
  uint64_t alignment = 0;  // stays 0, and so is refused, if it is not an unsigned number
  if (const auto* number = std::get_if<uint64_t>(&found->second)) alignment = *number;
  if (!std::has_single_bit(alignment) || alignment < kMinGgufAlignment || alignment > kMaxGgufAlignment) {
    return cursor.Error(absl::StrCat(
        "metadata key 'general.alignment' must be an unsigned power of two from ", kMinGgufAlignment, " to ",
        kMaxGgufAlignment, alignment == 0 ? std::string() : absl::StrCat(", got ", alignment)));
  }
  return alignment;
}

// Types of the format that have no layout here, for a message that says more than a number.
absl::string_view UnsupportedTypeName(uint32_t number) {
  constexpr absl::string_view kNames[] = {"",
                                          "",
                                          "",
                                          "",
                                          "Q4_2 (withdrawn)",
                                          "Q4_3 (withdrawn)",
                                          "",
                                          "Q5_1",
                                          "",
                                          "Q8_1",
                                          "Q2_K",
                                          "Q3_K",
                                          "",
                                          "",
                                          "",
                                          "Q8_K",
                                          "IQ2_XXS",
                                          "IQ2_XS",
                                          "IQ3_XXS",
                                          "IQ1_S",
                                          "IQ4_NL",
                                          "IQ3_S",
                                          "IQ2_S",
                                          "IQ4_XS",
                                          "I8",
                                          "I16",
                                          "I32",
                                          "I64",
                                          "F64",
                                          "IQ1_M",
                                          "",
                                          "Q4_0_4_4 (withdrawn)",
                                          "Q4_0_4_8 (withdrawn)",
                                          "Q4_0_8_8 (withdrawn)",
                                          "TQ1_0",
                                          "TQ2_0",
                                          "IQ4_NL_4_4 (withdrawn)",
                                          "IQ4_NL_4_8 (withdrawn)",
                                          "IQ4_NL_8_8 (withdrawn)",
                                          "MXFP4",
                                          "NVFP4",
                                          "Q1_0",
                                          "Q2_0"};
  return number < std::size(kNames) ? kNames[number] : absl::string_view();
}

absl::StatusOr<TensorType> ReadTensorType(GgufCursor& cursor) {
  ASSIGN_OR_RETURN(const uint32_t number, cursor.Read<uint32_t>("tensor type"));
  constexpr absl::string_view kSupported =
      "supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q5_K and Q6_K";
  switch (static_cast<TensorType>(number)) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kQ4_0:
    case TensorType::kQ4_1:
    case TensorType::kQ5_0:
    case TensorType::kQ8_0:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
    case TensorType::kQ6_K:
    case TensorType::kBF16:
      return static_cast<TensorType>(number);
  }
  const absl::string_view name = UnsupportedTypeName(number);
  if (!name.empty()) {
    return cursor.Error(
        absl::StrCat("its type ", name, " (type ", number, ") is not supported yet; ", kSupported));
  }
  return cursor.Error(
      absl::StrCat("unknown tensor type ", number, " at byte ", cursor.offset() - 4, "; ", kSupported));
}

absl::StatusOr<std::vector<uint64_t>> ReadShape(GgufCursor& cursor) {
  ASSIGN_OR_RETURN(const uint32_t dimensions, cursor.Read<uint32_t>("number of dimensions"));
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return cursor.Error(absl::StrCat("number of dimensions at byte ", cursor.offset() - 4, " is ", dimensions,
                                     ", must be 1 to ", kMaxDimensions));
  }
  std::vector<uint64_t> shape(dimensions);
  for (uint64_t& length : shape) {
    ASSIGN_OR_RETURN(length, cursor.Read<uint64_t>("dimension"));
    if (length == 0) return cursor.Error(absl::StrCat("dimension at byte ", cursor.offset() - 8, " is 0"));
  }
  return shape;
}

// Bytes of a tensor, refused where they do not fit 63 bits.
absl::StatusOr<uint64_t> TensorBytes(const GgufCursor& cursor, TensorType type,
                                     const std::vector<uint64_t>& shape) {
  const TensorTypeLayout layout = LayoutOf(type);
  if (shape[0] % layout.elements != 0) {
    return cursor.Error(absl::StrCat("has ", shape[0], " columns, must be a multiple of ", layout.elements,
                                     " for type ", NameOf(type)));
  }
  constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();
  uint64_t bytes = layout.bytes;
  for (size_t i = 0; i < shape.size(); ++i) {
    const uint64_t factor = i == 0 ? shape[0] / layout.elements : shape[i];
    if (__builtin_mul_overflow(bytes, factor, &bytes) || bytes > kMaxBytes) {
      return cursor.Error("its dimensions multiply to more than 2^63 bytes");
    }
  }
  return bytes;
}

// Where a tensor lies, from the start of the data section.
struct Extent {
  uint64_t offset;
  uint64_t bytes;
};

absl::Status ReadDescriptions(GgufCursor& cursor, uint64_t count, GgufContents& contents,
                              std::vector<Extent>& extents) {
  contents.tensors.reserve(count);
  contents.tensor_index.reserve(count);
  extents.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const std::string number = absl::StrCat(i + 1, " of ", count);
    cursor.SetPlace("tensor", number);
    ASSIGN_OR_RETURN(const absl::string_view name, cursor.ReadString("tensor name", kMaxGgufTensorNameBytes));
    if (name.empty()) return cursor.Error(absl::StrCat("empty tensor name at byte ", cursor.offset() - 8));
    cursor.SetPlace("tensor", name);
    TensorInfo tensor;
    tensor.name = std::string(name);
    ASSIGN_OR_RETURN(tensor.shape, ReadShape(cursor));
    ASSIGN_OR_RETURN(tensor.type, ReadTensorType(cursor));
    Extent extent;
    ASSIGN_OR_RETURN(extent.offset, cursor.Read<uint64_t>("tensor offset"));
    ASSIGN_OR_RETURN(extent.bytes, TensorBytes(cursor, tensor.type, tensor.shape));
    if (!contents.tensor_index.emplace(name, i).second) {
      return cursor.Error(absl::StrCat("appears twice, the second time before byte ", cursor.offset()));
    }
    contents.tensors.push_back(std::move(tensor));
    extents.push_back(extent);
  }
  cursor.SetPlace("", "");
  return absl::OkStatus();
}

absl::Status CheckNoOverlap(GgufCursor& cursor, const std::vector<Extent>& extents,
                            const GgufContents& contents) {
  std::vector<size_t> order(extents.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return extents[a].offset < extents[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const Extent& before = extents[order[i - 1]];
    const Extent& after = extents[order[i]];
    if (before.offset + before.bytes > after.offset) {
      cursor.SetPlace("tensor", contents.tensors[order[i]].name);
      return cursor.Error(absl::StrCat("begins at data byte ", after.offset, " and overlaps tensor '",
                                       PrintableName(contents.tensors[order[i - 1]].name),
                                       "', which ends at ", before.offset + before.bytes));
    }
  }
  return absl::OkStatus();
}

absl::Status PlaceTensors(GgufCursor& cursor, absl::Span<const uint8_t> image, uint64_t alignment,
                          const std::vector<Extent>& extents, GgufContents& contents) {
  const uint64_t data_begin = (contents.header_bytes + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = image.size() > data_begin ? image.size() - data_begin : 0;
  for (size_t i = 0; i < extents.size(); ++i) {
    const Extent& extent = extents[i];
    cursor.SetPlace("tensor", contents.tensors[i].name);
    if (extent.offset % alignment != 0) {
      return cursor.Error(
          absl::StrCat("its offset ", extent.offset, " is not a multiple of the alignment ", alignment));
    }
    if (extent.offset > data_bytes || extent.bytes > data_bytes - extent.offset) {
      return cursor.Error(absl::StrCat("wants ", extent.bytes, " bytes at data byte ", extent.offset,
                                       ", but the file has ", data_bytes, " bytes of data (", image.size(),
                                       " in all); it is truncated or damaged: fetch or convert it again"));
    }
    contents.tensors[i].bytes = image.subspan(data_begin + extent.offset, extent.bytes);
  }
  return CheckNoOverlap(cursor, extents, contents);
}

}  // namespace

absl::StatusOr<GgufContents> ParseGguf(absl::Span<const uint8_t> image, absl::string_view name) {
  GgufCursor cursor(image, name);
  GgufContents contents;
  ASSIGN_OR_RETURN(const Counts counts, ReadPreamble(cursor));
  RETURN_IF_ERROR(ReadMetadata(cursor, counts.metadata_pairs, contents));
  ASSIGN_OR_RETURN(const uint64_t alignment, ReadAlignment(cursor, contents));
  std::vector<Extent> extents;
  RETURN_IF_ERROR(ReadDescriptions(cursor, counts.tensors, contents, extents));
  contents.header_bytes = cursor.offset();
  RETURN_IF_ERROR(PlaceTensors(cursor, image, alignment, extents, contents));
  return contents;
}

}  // namespace millrace
