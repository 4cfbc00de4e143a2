#include <string.h>

#include "cuda_emulator/blocks.h"
#include "cuda_emulator/faults.h"

namespace cnnlstm::emulator {

static const char* verb(Access access) {
  switch (access) {
    case Access::kLoad:
      return "it reads ";
    case Access::kStore:
      return "it writes ";
    case Access::kBarrier:
      return "it uses an mbarrier of ";
  }
  return "";
}

void Blocks::check_shared(Access access, const void* at, size_t bytes, size_t alignment) {
  const Thread& thread = self();
  const int64_t first = reinterpret_cast<intptr_t>(at) - reinterpret_cast<intptr_t>(thread.block->shared);
  const auto what = [&] {
    return verb(access) + std::to_string(bytes) + " bytes at byte " + std::to_string(first);
  };
  if (first < 0 || first + static_cast<int64_t>(bytes) > shared_bytes_)
    fail(thread, what() + " of " + std::to_string(shared_bytes_) + " bytes of shared memory");
  if (first % alignment != 0)
    fail(thread, what() + " of shared memory, which is not a multiple of " + std::to_string(alignment));
  for (const Barrier& barrier : thread.block->barriers) {
    const int64_t begin = reinterpret_cast<const char*>(barrier.at) - thread.block->shared;
    if (access != Access::kBarrier && first < begin + 8 && first + static_cast<int64_t>(bytes) > begin)
      fail(thread, what() + " of shared memory, where an mbarrier lies");
  }
}

void Blocks::check_global(Access access, const void* at, size_t bytes, size_t alignment) {
  const Thread& thread = self();
  const char* const begin = static_cast<const char*>(at);
  const Array* holds = nullptr;
  for (const Array& array : arrays_) {
    if (begin < array.begin || begin + bytes > array.begin + array.bytes) continue;
    holds = &array;
    if (array.writable || access == Access::kLoad) break;
  }
  const auto what = [&] { return verb(access) + std::to_string(bytes) + " bytes "; };
  if (holds == nullptr) {
    std::string where = "of global memory, of which it has no array";
    int64_t nearest = INT64_MAX;
    for (size_t i = 0; i < arrays_.size(); ++i) {
      const int64_t first = reinterpret_cast<intptr_t>(at) - reinterpret_cast<intptr_t>(arrays_[i].begin);
      const int64_t distance = first < 0 ? -first : first - arrays_[i].bytes;
      if (distance >= nearest) continue;
      nearest = distance;
      where = "at byte " + std::to_string(first) + " of the nearest array, number " + std::to_string(i) +
              ", which has " + std::to_string(arrays_[i].bytes);
    }
    fail(thread, what() + where);
  }
  if (access == Access::kStore && !holds->writable)
    fail(thread, what() + "of array number " + std::to_string(holds - arrays_.data()) + ", which is const");
  if (reinterpret_cast<uintptr_t>(at) % alignment != 0)
    fail(thread, what() + "at byte " + std::to_string(begin - holds->begin) + " of array number " +
                     std::to_string(holds - arrays_.data()) + ", an address that is not a multiple of " +
                     std::to_string(alignment));
}

void Copy::land() const {
  if (exists) {
    memcpy(to, from, 16);
  } else {
    memset(to, 0, 16);
  }
}

char* shared_memory() { return blocks->self().block->shared; }

void touch_shared(Access access, const void* at, size_t bytes, size_t alignment) {
  blocks->check_shared(access, at, bytes, alignment);
  blocks->let_others_go_first();
}

void touch_global(Access access, const void* at, size_t bytes, size_t alignment) {
  blocks->check_global(access, at, bytes, alignment);
  blocks->let_others_go_first();
}

void copy_async(void* to_shared, const void* from, bool exists) {
  touch_shared(Access::kStore, to_shared, 16, 16);
  if (exists) blocks->check_global(Access::kLoad, from, 16, 16);
  memset(to_shared, 0xff, 16);  // NaN, so that a thread that does not wait for the data gets a wrong result
  Thread& thread = blocks->self();
  thread.copies.push_back(
      {static_cast<char*>(to_shared), static_cast<const char*>(from), exists, thread.copy_group});
}

void copy_commit() { ++blocks->self().copy_group; }

void copy_wait(int pending) {
  if (planted == Fault::kCopyWait) return;
  Thread& thread = blocks->self();
  std::erase_if(thread.copies, [&](const Copy& copy) {
    const bool awaited = copy.group < thread.copy_group - pending;
    if (awaited) copy.land();
    return awaited;
  });
}

}  // namespace cnnlstm::emulator
