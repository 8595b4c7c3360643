#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "kernel_launch.h"

namespace cuda_on_cpu {
namespace {

// The name of the function that begins at `offset` from the load address, by the file's symbol table; "" if
// none. Kernels are mostly in unnamed namespaces, so that the dynamic linker does not know them.
std::string SymbolAt(const char* path, uint64_t offset) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  Elf64_Ehdr header;
  if (bytes.size() < sizeof(header)) return "";
  std::memcpy(&header, bytes.data(), sizeof(header));
  std::vector<Elf64_Shdr> sections(header.e_shnum);
  if (header.e_shoff + sections.size() * sizeof(Elf64_Shdr) > bytes.size()) return "";
  std::memcpy(sections.data(), bytes.data() + header.e_shoff, sections.size() * sizeof(Elf64_Shdr));
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_SYMTAB) continue;
    const char* const names = bytes.data() + sections[section.sh_link].sh_offset;
    for (uint64_t at = section.sh_offset; at < section.sh_offset + section.sh_size; at += sizeof(Elf64_Sym)) {
      Elf64_Sym symbol;
      std::memcpy(&symbol, bytes.data() + at, sizeof(symbol));
      if (symbol.st_value == offset && ELF64_ST_TYPE(symbol.st_info) == STT_FUNC)
        return names + symbol.st_name;
    }
  }
  return "";
}

}  // namespace

std::string KernelName(const void* function) {
  Dl_info info;
  std::string name;
  if (dladdr(function, &info) != 0) {
    const auto base = reinterpret_cast<uint64_t>(info.dli_fbase);
    name = SymbolAt(info.dli_fname, reinterpret_cast<uint64_t>(function) - base);
  }
  if (name.empty()) {
    char text[32];
    std::snprintf(text, sizeof(text), "at %p", function);
    return text;
  }
  int status = 0;
  char* const demangled = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  if (status == 0) name = demangled;
  std::free(demangled);
  return name;
}

}  // namespace cuda_on_cpu
