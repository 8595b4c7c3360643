#include "common/buffer_pool.h"

#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace millrace {
namespace {

TEST(BufferPoolTest, GivesAlignedMemoryOfTheSizeAskedFor) {
  BufferPool pool(4);
  for (const size_t size : {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{1000003}}) {
    const std::shared_ptr<PooledBuffer> buffer = pool.Get(size);
    EXPECT_EQ(buffer->size, size);
    EXPECT_GE(buffer->capacity, size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data) % 64, 0u);
    if (size > 0) std::memset(buffer->data, 0xab, size);
  }
}

TEST(BufferPoolTest, CountsWholeFloats) {
  BufferPool pool(1);
  EXPECT_EQ(pool.Get(11)->num_floats(), 2u);
}

TEST(BufferPoolTest, GivesABufferBackThatIsLargeEnough) {
  BufferPool pool(4);
  const uint8_t* data = pool.Get(1000)->data;
  const std::shared_ptr<PooledBuffer> again = pool.Get(500);
  EXPECT_EQ(again->data, data);
  EXPECT_EQ(again->size, 500u);
  EXPECT_GE(again->capacity, 1000u);
}

TEST(BufferPoolTest, DoesNotGiveABufferThatIsTooSmall) {
  BufferPool pool(4);
  pool.Get(64).reset();
  EXPECT_GE(pool.Get(65)->capacity, 65u);
}

TEST(BufferPoolTest, NeverGivesOneBufferToTwo) {
  BufferPool pool(4);
  const auto a = pool.Get(100);
  const auto b = pool.Get(100);
  EXPECT_NE(a->data, b->data);
}

// Small buffers that filled the pool must not keep it from serving large ones.
TEST(BufferPoolTest, PrefersToKeepLargeBuffers) {
  BufferPool pool(2);
  {
    const auto a = pool.Get(64);
    const auto b = pool.Get(64);
  }
  pool.Get(4096).reset();
  // The one that came back last goes out first.
  EXPECT_EQ(pool.Get(1)->capacity, 4096u);
}

TEST(BufferPoolTest, TakesBuffersBackAfterItIsGone) {
  std::optional<BufferPool> pool(4);
  const std::shared_ptr<PooledBuffer> buffer = pool->Get(100);
  pool.reset();
  std::memset(buffer->data, 1, buffer->size);
}

TEST(BufferPoolTest, WorksWithoutKeepingAnything) {
  BufferPool pool(0);
  pool.Get(100).reset();
  EXPECT_EQ(pool.Get(10)->capacity, 64u);
}

TEST(BufferPoolTest, ServesManyThreads) {
  BufferPool pool(3);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&pool, t] {
      for (int i = 0; i < 500; ++i) {
        const auto buffer = pool.Get(64 + (i % 5) * 100);
        std::memset(buffer->data, t, buffer->size);
        for (size_t k = 0; k < buffer->size; ++k) ASSERT_EQ(buffer->data[k], t);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace millrace
