#include "coordinator/frontend/error_detail.h"

#include <string>

#include "common/error_reason.h"
#include "gtest/gtest.h"
#include "millrace/v1/rpc_status.pb.h"

namespace millrace {
namespace {

TEST(ErrorDetailTest, OkIsOk) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
}

TEST(ErrorDetailTest, CarriesReasonAndRetryable) {
  const grpc::Status status = ToGrpcStatus(RetryLater(absl::StatusCode::kUnavailable, "WORKER_LOST", "gone"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "gone");
  v1::RpcStatus details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), 14);
  EXPECT_EQ(details.message(), "gone");
  ASSERT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/millrace.v1.ErrorDetail");
  v1::ErrorDetail detail;
  ASSERT_TRUE(details.details(0).UnpackTo(&detail));
  EXPECT_EQ(detail.reason(), "WORKER_LOST");
  EXPECT_TRUE(detail.retryable());
}

TEST(ErrorDetailTest, CarriesThePauseBeforeARetryUnderBothNames) {
  const grpc::Status status =
      ToGrpcStatus(RetryAfter(RetryLater(absl::StatusCode::kResourceExhausted, "QUEUE_FULL", "full"),
                              absl::Milliseconds(2500) - absl::Nanoseconds(1)));
  v1::RpcStatus details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  ASSERT_EQ(details.details_size(), 2);
  v1::ErrorDetail detail;
  ASSERT_TRUE(details.details(0).UnpackTo(&detail));
  EXPECT_TRUE(detail.retryable());
  EXPECT_EQ(detail.retry_after().seconds(), 2);
  EXPECT_EQ(detail.retry_after().nanos(), 500000000);
  EXPECT_EQ(details.details(1).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  v1::RpcRetryInfo info;
  ASSERT_TRUE(info.ParseFromString(details.details(1).value()));
  EXPECT_EQ(info.retry_delay().seconds(), 2);
  EXPECT_EQ(info.retry_delay().nanos(), 500000000);
}

TEST(ErrorDetailTest, DerivesFromTheCodeWhatNobodySaid) {
  const auto retryable = [](absl::StatusCode code) { return DetailOf(absl::Status(code, "x")).retryable(); };
  EXPECT_TRUE(retryable(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(retryable(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(retryable(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(retryable(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(retryable(absl::StatusCode::kCancelled));
  EXPECT_FALSE(retryable(absl::StatusCode::kInternal));
  EXPECT_EQ(DetailOf(absl::CancelledError("x")).reason(), "CANCELLED");
  EXPECT_EQ(DetailOf(absl::UnavailableError("x")).reason(), "PIPELINE_UNAVAILABLE");
}

TEST(ErrorDetailTest, AnUndocumentedCodeIsOurDefect) {
  const grpc::Status status = ToGrpcStatus(absl::DataLossError("x"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(status.error_message(), "DATA_LOSS: x");
}

TEST(ErrorDetailTest, MessagesAreOneShortLineOfUtf8) {
  const std::string message =
      ToGrpcStatus(absl::InternalError("a\nb\x01 \xFF" + std::string(5000, 'x'))).error_message();
  EXPECT_EQ(message.substr(0, 8), "a b  \xEF\xBF\xBD");
  EXPECT_EQ(message.size(), 1024u);
  const std::string wide = ToGrpcStatus(absl::InternalError("a" + std::string(3000, '\xC3'))).error_message();
  EXPECT_EQ(wide.size(), 1024u) << "341 replacement characters and one letter";
}

TEST(ErrorDetailTest, QuotesWhatCameFromOutside) {
  EXPECT_EQ(Quoted("a\"\n"), "\"a\\\"\\n\"");
  EXPECT_EQ(Quoted(std::string(65, 'x')), "\"" + std::string(64, 'x') + "\"...");
}

}  // namespace
}  // namespace millrace
