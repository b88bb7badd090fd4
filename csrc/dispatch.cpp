#include "dispatch.h"
#include "fresh_memory.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace fastinit {

#if defined(__x86_64__)
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
#endif
namespace baseline { extern const Kernels kernels; }

std::vector<const Kernels*> instruction_sets() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::kernels);
  // F16C needs no check: every processor with AVX2 and FMA has it.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
  found.push_back(&baseline::kernels);
  return found;
}

namespace {

// Elements of a piece: 256 KiB of float32 take some 50 us, short enough to keep all cores of a large machine busy to the
// end. Until then a thread takes up to kTogether pieces, 2 MiB, at a time: threads that touched the same fresh huge page at
// once would each clear it, and all but one in vain.
constexpr int64_t kPiece = 1 << 16;
constexpr int64_t kTogether = 8;
// Starting a thread takes some 30 us, so start one only for this many pieces.
constexpr int64_t kPiecesPerThread = 2;
// How often to call the watch: Ctrl-C should act within a tenth of a second, and asking Python costs up to 5 ms where other
// Python threads are busy.
constexpr std::chrono::milliseconds kAskAfter{40};

// What is done with the elements [begin, end) of a record.
using Task = std::function<void(size_t record, int64_t begin, int64_t end)>;

// The pieces of all records, which the threads take in order. Outlives the call: a thread that starts only after all pieces
// are done (torch's threads spin for milliseconds after their work, and may delay it) finds none left and ends.
class Pieces {
 public:
  Pieces(Task task, const FillDesc* records, size_t n_records, int n_threads)
      : task_(std::move(task)), records_(records), n_threads_(n_threads) {
    for (size_t i = 0; i < n_records; ++i) {
      first_.push_back(first_.back() + (records[i].n_elements + kPiece - 1) / kPiece);
      bytes_.push_back(bytes_.back() + records[i].n_elements * records[i].element_bytes);
    }
  }

  int64_t count() const { return first_.back(); }

  void work(const Watch& watch = nullptr) {
    int64_t done = 0;
    auto asked = std::chrono::steady_clock::now();
    for (;;) {
      const int64_t left = count() - next_.load(std::memory_order_relaxed);
      const int64_t some = std::max<int64_t>(1, std::min(kTogether, left / (4 * n_threads_)));
      const int64_t first = next_.fetch_add(some, std::memory_order_relaxed), end = std::min(first + some, count());
      if (first >= end) break;
      for (int64_t piece = first; piece < end; ++piece, ++done) {
        const size_t which = record_of(piece);
        const int64_t begin = (piece - first_[which]) * kPiece;
        task_(which, begin, std::min(begin + kPiece, records_[which].n_elements));
      }
      if (watch && std::chrono::steady_clock::now() - asked >= kAskAfter) {
        if (watch(bytes_before(next_.load(std::memory_order_relaxed)))) {
          done += std::max<int64_t>(0, count() - next_.exchange(count()));  // as good as done
          break;
        }
        asked = std::chrono::steady_clock::now();
      }
    }
    if (done == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if ((done_ += done) == count()) finished_.notify_all();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [&] { return done_ == count(); });
  }

 private:
  size_t record_of(int64_t piece) const {
    return size_t(std::upper_bound(first_.begin(), first_.end(), piece) - first_.begin()) - 1;
  }

  int64_t bytes_before(int64_t piece) const {
    if (piece >= count()) return bytes_.back();
    const size_t which = record_of(piece);
    return bytes_[which] + (piece - first_[which]) * kPiece * records_[which].element_bytes;
  }

  const Task task_;                // not to be called once all pieces are done,
  const FillDesc* const records_;  // when these are invalid, too
  const int n_threads_;
  std::vector<int64_t> first_{0};  // each record's first piece, and the end
  std::vector<int64_t> bytes_{0};  // how many lie before each record, and in all
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
  int64_t done_ = 0;
};

void run_task(Task task, const FillDesc* records, size_t n_records, int n_threads, const Watch& watch) {
  const auto pieces = std::make_shared<Pieces>(std::move(task), records, n_records, n_threads);
  // Each call starts new threads: a pool would not survive fork, and idle threads would spin.
  const int64_t helpers = std::min<int64_t>(n_threads, pieces->count() / kPiecesPerThread) - 1;
  for (int64_t i = 0; i < helpers; ++i) {
    try {
      std::thread([pieces] { pieces->work(); }).detach();
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the running ones do the work
    }
  }
  pieces->work(watch);
  pieces->wait();
}

}  // namespace

namespace {

// Less than this is not worth asking the system about.
constexpr int64_t kFreshBytes = 1 << 20;

// Tells whether a box's elements lie one after the other in memory, in the order in which they are filled.
bool is_dense(const FillDesc& fill) {
  int64_t n = 1;
  for (int dim = kMaxDims - 1; dim >= 0; --dim) {
    if (fill.size[dim] != 1 && fill.stride[dim] != n) return false;
    n *= fill.size[dim];
  }
  return true;
}

Span bytes_of(const FillDesc& fill, int64_t begin, int64_t end) {
  const uintptr_t data = reinterpret_cast<uintptr_t>(fill.data);
  return {data + uintptr_t(begin * fill.element_bytes), data + uintptr_t(end * fill.element_bytes)};
}

}  // namespace

void run(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads, const Watch& watch) {
  std::vector<Span> spans;
  int64_t n_bytes = 0;
  for (size_t i = 0; i < n_fills; ++i) n_bytes += fills[i].n_elements * fills[i].element_bytes;
  if (n_bytes >= kFreshBytes)
    for (size_t i = 0; i < n_fills; ++i)
      if (is_dense(fills[i])) spans.push_back(bytes_of(fills[i], 0, fills[i].n_elements));
  FreshMemory memory(std::move(spans));
  const auto fill = [&](size_t which, int64_t begin, int64_t end) {
    const Span bytes = bytes_of(fills[which], begin, end);
    if (is_dense(fills[which])) memory.back(bytes.begin, bytes.end);
    kernels.fill_range(fills[which], begin, end);
  };
  run_task(fill, fills, n_fills, n_threads, watch);
}

void run_digest(const Kernels& kernels, const FillDesc* boxes, size_t n_boxes, int n_threads, uint64_t* sums,
                const Watch& watch) {
  std::vector<std::atomic<uint64_t>> totals(n_boxes);
  for (auto& total : totals) total.store(0, std::memory_order_relaxed);
  const auto add = [&](size_t which, int64_t begin, int64_t end) {
    totals[which].fetch_add(kernels.digest_range(boxes[which], begin, end), std::memory_order_relaxed);
  };
  run_task(add, boxes, n_boxes, n_threads, watch);
  for (size_t i = 0; i < n_boxes; ++i) sums[i] = totals[i].load(std::memory_order_relaxed);
}

void back_all(const std::vector<Span>& spans, int n_threads) {
  FreshMemory memory(spans);
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t block; (block = next.fetch_add(1)) < memory.n_blocks();) memory.back_block(block);
  };
  std::vector<std::thread> helpers;
  const size_t n_helpers = std::min(size_t(n_threads), memory.n_blocks());
  try {
    for (size_t i = 1; i < n_helpers; ++i) helpers.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads to be had
  }
  work();
  for (std::thread& each : helpers) each.join();
}

void run_compare(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads, int64_t* first,
                 const Watch& watch) {
  std::vector<std::atomic<int64_t>> found(n_fills);
  for (size_t i = 0; i < n_fills; ++i) found[i].store(fills[i].n_elements, std::memory_order_relaxed);
  const auto compare = [&](size_t which, int64_t begin, int64_t end) {
    int64_t least = found[which].load(std::memory_order_relaxed);
    if (begin >= least) return;
    const int64_t at = kernels.compare_range(fills[which], begin, end);
    while (at < end && at < least && !found[which].compare_exchange_weak(least, at, std::memory_order_relaxed)) {
    }
  };
  run_task(compare, fills, n_fills, n_threads, watch);
  for (size_t i = 0; i < n_fills; ++i) {
    const int64_t at = found[i].load(std::memory_order_relaxed);
    first[i] = at < fills[i].n_elements ? at : -1;
  }
}

}  // namespace fastinit
