#include "common/transport/secret.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace millrace {
namespace {

class SecretTest : public ::testing::Test {
 protected:
  SecretTest() : path_(absl::StrCat(::testing::TempDir(), "secret-XXXXXX")) { close(mkstemp(path_.data())); }
  ~SecretTest() override { unlink(path_.c_str()); }

  absl::StatusOr<std::string> ReadBack(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return ReadSecretFile(path_);
  }
  mode_t Mode() const {
    struct stat info;
    EXPECT_EQ(stat(path_.c_str(), &info), 0);
    return info.st_mode & 0777;
  }

  std::string path_;
};

TEST_F(SecretTest, EqualsOnlyItself) {
  EXPECT_TRUE(SecretsEqual("", ""));
  EXPECT_TRUE(SecretsEqual("abc", "abc"));
  for (const char* other : {"", "ab", "abcd", "abd", "xbc", "ABC"})
    EXPECT_FALSE(SecretsEqual("abc", other)) << other;
  EXPECT_FALSE(SecretsEqual("", "a"));
  EXPECT_FALSE(SecretsEqual(absl::string_view("a\0b", 3), absl::string_view("a\0c", 3)));
}

TEST_F(SecretTest, IsMadeOf128RandomBits) {
  const std::string secret = MakeSecret();
  EXPECT_EQ(secret.size(), 32u);
  EXPECT_EQ(secret.find_first_not_of("0123456789abcdef"), std::string::npos) << secret;
  EXPECT_NE(secret, MakeSecret());
}

TEST_F(SecretTest, ComesBackFromAFileThatOnlyTheOwnerReads) {
  ASSERT_EQ(chmod(path_.c_str(), 0644), 0);
  const std::string secret = MakeSecret();
  ASSERT_TRUE(WriteSecretFile(path_, secret).ok());
  EXPECT_EQ(Mode(), 0600u);
  const absl::StatusOr<std::string> read = ReadSecretFile(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(*read, secret);
  ASSERT_TRUE(WriteSecretFile(path_, "s").ok());
  EXPECT_EQ(*ReadSecretFile(path_), "s");
}

TEST_F(SecretTest, IsCreatedForTheOwnerOnly) {
  ASSERT_EQ(unlink(path_.c_str()), 0);
  ASSERT_TRUE(WriteSecretFile(path_, "s").ok());
  EXPECT_EQ(Mode(), 0600u);
}

TEST_F(SecretTest, IsTheFirstLineOfItsFile) {
  EXPECT_EQ(*ReadBack("first\nsecond line\n"), "first");
  EXPECT_EQ(*ReadBack("no-newline"), "no-newline");
  EXPECT_EQ(*ReadBack(std::string(256, '~')), std::string(256, '~'));
}

TEST_F(SecretTest, IsEmptyWithoutAFile) {
  EXPECT_EQ(*ReadSecretFile(""), "");
}

TEST_F(SecretTest, RefusesFilesThatHoldNone) {
  for (const std::string& text :
       {std::string(), std::string("\nsecret\n"), std::string("two words\n"), std::string("tab\t\n"),
        std::string("dos\r\n"), std::string("caf\xc3\xa9\n"), std::string("nul\0l", 5),
        std::string("del\x7f"), std::string(257, 'a')}) {
    EXPECT_EQ(ReadBack(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_EQ(ReadSecretFile("/nonexistent/secret").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SecretTest, SaysWhereItCannotBeWritten) {
  const absl::Status status = WriteSecretFile("/nonexistent/secret", "s");
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(status.message(), "/nonexistent/secret: No such file or directory");
}

}  // namespace
}  // namespace millrace
