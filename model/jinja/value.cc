#include "model/jinja/value.h"

namespace millrace::jinja {

std::optional<int64_t> Value::integer() const {
  if (const int64_t* integer = std::get_if<int64_t>(&data_)) return *integer;
  if (const bool* boolean = std::get_if<bool>(&data_)) return *boolean ? 1 : 0;
  return std::nullopt;
}

double Value::number() const {
  if (const double* number = std::get_if<double>(&data_)) return *number;
  return static_cast<double>(*integer());
}

bool Value::SameAs(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (is_undefined()) return false;  // every use of a missing name makes a new object
  if (is_none()) return true;
  if (is_float()) return number() == other.number();
  if (auto mine = integer()) return *mine == *other.integer();
  if (is_text()) return text() == other.text();
  if (list() != nullptr) return list() == other.list();
  if (dict() != nullptr) return dict() == other.dict();
  if (name_space() != nullptr) return name_space() == other.name_space();
  if (loop() != nullptr) return loop() == other.loop();
  return callable() == other.callable();
}

absl::string_view Value::TypeName() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "None";
  if (is_bool()) return "bool";
  if (is_integer()) return "int";
  if (is_float()) return "float";
  if (is_text()) return "str";
  if (dict() != nullptr) return "dict";
  if (name_space() != nullptr) return "Namespace";
  if (loop() != nullptr) return "LoopContext";
  if (callable() != nullptr) return "function";
  constexpr absl::string_view kLists[] = {"list", "tuple", "generator", "dict view"};
  return kLists[static_cast<size_t>(list()->kind)];
}

const Value* Dict::Find(absl::string_view key) const {
  for (const auto& [name, value] : items) {
    const Text* text = name.text();
    if (text != nullptr && text->bytes() == key) return &value;
  }
  return nullptr;
}

}  // namespace millrace::jinja
