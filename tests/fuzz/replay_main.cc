// Runs a fuzz target over the files of folders, in order of name: a crash found once stays found, with any
// compiler.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <system_error>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

std::vector<std::filesystem::path> FilesIn(const char* folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool Replay(const std::filesystem::path& path) {
  // Named before it runs, so that the last line before a crash says which file did it.
  std::printf("%s\n", path.c_str());
  std::fflush(stdout);
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (in.bad() || !in.is_open()) return false;
  // An exact allocation: a sanitizer sees the first byte read past it.
  const auto exact = std::make_unique<uint8_t[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), exact.get());
  return LLVMFuzzerTestOneInput(exact.get(), bytes.size()) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  size_t replayed = 0;
  for (int i = 1; i < argc; ++i) {
    const std::vector<std::filesystem::path> files = FilesIn(argv[i]);
    if (files.empty()) {
      std::fprintf(stderr, "%s: no corpus file in this folder\n", argv[i]);
      return 1;
    }
    for (const auto& file : files) {
      if (!Replay(file)) {
        std::fprintf(stderr, "%s: cannot be read, or was not accepted by the target\n", file.c_str());
        return 1;
      }
      ++replayed;
    }
  }
  std::printf("%zu files replayed\n", replayed);
  return replayed > 0 ? 0 : 1;
}
