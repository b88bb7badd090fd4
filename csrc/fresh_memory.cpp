#include "fresh_memory.h"

#include <algorithm>
#include <utility>

#if defined(__linux__)
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <mutex>
#include <thread>
#endif

namespace fastinit {

#if defined(__linux__)

namespace {

// linux/mman.h since 5.14; older C libraries do not have it.
constexpr int kPopulateWrite = 23;
// Less than this is not worth looking at: a fault a page costs as much as asking.
constexpr uintptr_t kWorthIt = 1 << 16;
// Huge pages of more than this (512 MiB where pages have 64 KiB) are not asked for.
constexpr uintptr_t kLargestBlock = 32 << 20;

uintptr_t number_in(const char* path) {
  unsigned long long number = 0;
  if (FILE* file = fopen(path, "r")) {
    if (fscanf(file, "%llu", &number) != 1) number = 0;
    fclose(file);
  }
  return uintptr_t(number);
}

bool has_word(const char* path, const char* word) {
  char text[256] = "";
  if (FILE* file = fopen(path, "r")) {
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
  }
  return strstr(text, word) != nullptr;
}

struct System {
  uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  // Of a huge page.
  uintptr_t block = number_in("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
  // Where the system gives huge pages to all ("always") or to none ("never"), there is nothing to choose.
  bool has_choice = has_word("/sys/kernel/mm/transparent_hugepage/enabled", "[madvise]");

  System() {
    if (block < page || block > kLargestBlock) {
      block = 2 << 20;
      has_choice = false;
    }
  }
};

const System& the_system() {
  static const System found;
  return found;
}

// What the calling thread has used of the processor: unlike the time that passed, it does not hold what other programs took.
double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// What the last call of this process has found, with which the next one begins. It does without where another call holds the
// lock: a process that was forked meanwhile would wait for it for ever.
std::mutex last_mutex;
PageChoice last_choice;
std::chrono::steady_clock::time_point last_end;
// After this time a call begins with nothing: other programs have used memory since, or the host has taken it back.
constexpr std::chrono::milliseconds kForgotten{500};

// Returns what is left of some pages without those at both ends that are there already (malloc keeps sizes in front of what
// it gives out); nothing if others are.
Span untouched(Span pages) {
  unsigned char found[kLargestBlock / 4096];
  const uintptr_t page = the_system().page;
  if (mincore(reinterpret_cast<void*>(pages.begin), pages.end - pages.begin, found) != 0) return {0, 0};
  size_t first = 0, last = (pages.end - pages.begin) / page;
  while (first < last && (found[first] & 1)) ++first;
  while (first < last && (found[last - 1] & 1)) --last;
  for (size_t i = first; i < last; ++i)
    if (found[i] & 1) return {0, 0};
  return {pages.begin + first * page, pages.begin + last * page};
}

// Touches pages as one call; leaves their contents. Where it fails, whoever writes there has the faults, or the error.
void populate(Span pages) {
  static std::atomic<bool> is_known{true};
  void* const begin = reinterpret_cast<void*>(pages.begin);
  if (is_known.load(std::memory_order_relaxed)) {
    if (madvise(begin, pages.end - pages.begin, kPopulateWrite) == 0 || errno != EINVAL) return;
    is_known.store(false, std::memory_order_relaxed);
  }
  // Linux before 5.14. Another thread may be writing there.
  for (uintptr_t page = pages.begin; page < pages.end; page += the_system().page)
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(page), 0, __ATOMIC_RELAXED);
}

constexpr uint8_t kNotChosen = 255;

enum State : uint8_t { kNotYet = 0, kBegun = 1, kDone = 2 };

}  // namespace

FreshMemory::FreshMemory(std::vector<Span> spans) {
  const uintptr_t page = the_system().page;
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  std::vector<Span> merged;
  for (const Span& each : spans) {
    if (each.end <= each.begin) continue;
    const Span whole{each.begin / page * page, (each.end + page - 1) / page * page};
    if (!merged.empty() && whole.begin <= merged.back().end)
      merged.back().end = std::max(merged.back().end, whole.end);
    else
      merged.push_back(whole);
  }
  for (const Span& each : merged) {
    if (each.end - each.begin < kWorthIt) continue;
    stretches_.push_back({each, n_blocks_});
    n_blocks_ += n_blocks_of(stretches_.back());
  }
  chosen_.assign(n_blocks_, kNotChosen);
  if (n_blocks_ == 0) return;
  const std::unique_lock<std::mutex> lock(last_mutex, std::try_to_lock);
  if (lock && std::chrono::steady_clock::now() - last_end < kForgotten) choice_ = last_choice;
  states_.reset(new std::atomic<uint8_t>[n_blocks_]);
  for (size_t i = 0; i < n_blocks_; ++i) states_[i].store(kNotYet, std::memory_order_relaxed);
}

FreshMemory::~FreshMemory() {
  if (n_blocks_ == 0) return;
  const std::unique_lock<std::mutex> lock(last_mutex, std::try_to_lock);
  if (!lock) return;
  last_choice = choice_;
  last_end = std::chrono::steady_clock::now();
}

size_t FreshMemory::n_blocks_of(const Stretch& stretch) {
  return (stretch.bytes.end - 1) / the_system().block - stretch.bytes.begin / the_system().block + 1;
}

Span FreshMemory::bytes_of(const Stretch& stretch, size_t which) {
  const uintptr_t block = the_system().block;
  const uintptr_t begin = (stretch.bytes.begin / block + (which - stretch.first_block)) * block;
  return {std::max(begin, stretch.bytes.begin), std::min(begin + block, stretch.bytes.end)};
}

void FreshMemory::back(uintptr_t begin, uintptr_t end) {
  if (n_blocks_ == 0) return;
  const auto after = std::upper_bound(stretches_.begin(), stretches_.end(), begin,
                                      [](uintptr_t address, const Stretch& each) { return address < each.bytes.begin; });
  if (after == stretches_.begin()) return;
  const Stretch& stretch = *(after - 1);
  if (begin >= stretch.bytes.end) return;
  end = std::min(end, stretch.bytes.end);
  const uintptr_t block = the_system().block, first = stretch.bytes.begin / block;
  for (uintptr_t each = begin / block; each * block < end; ++each) back_block(stretch.first_block + (each - first));
}

void FreshMemory::back_block(size_t which) {
  std::atomic<uint8_t>& state = states_[which];
  uint8_t expected = kNotYet;
  if (state.load(std::memory_order_acquire) == kDone) return;
  if (!state.compare_exchange_strong(expected, kBegun)) {
    // To go on would touch the same huge page: both threads would clear one, and one of them in vain.
    while (state.load(std::memory_order_acquire) != kDone) std::this_thread::yield();
    return;
  }
  const auto after = std::upper_bound(stretches_.begin(), stretches_.end(), which,
                                      [](size_t block, const Stretch& each) { return block < each.first_block; });
  const Stretch& stretch = *(after - 1);
  const Span bytes = untouched(bytes_of(stretch, which));
  if (bytes.end > bytes.begin) {
    if (!the_system().has_choice || bytes.end - bytes.begin < the_system().block) {
      populate(bytes);
    } else {
      const Pages pages = pages_of(stretch, which);
      const double began = seconds();
      populate(bytes);
      const double cost = seconds() - began;
      const std::lock_guard<std::mutex> lock(mutex_);
      choice_.paid(pages, cost);
    }
  }
  state.store(kDone, std::memory_order_release);
}

Pages FreshMemory::pages_of(const Stretch& stretch, size_t which) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (chosen_[which] != kNotChosen) return Pages(chosen_[which]);
  const PageChoice::Run run = choice_.next();
  size_t end = which;
  while (end < which + size_t(run.n_blocks) && end < stretch.first_block + n_blocks_of(stretch) && chosen_[end] == kNotChosen)
    chosen_[end++] = run.pages;
  const Span bytes{bytes_of(stretch, which).begin, bytes_of(stretch, end - 1).end};
  if (run.pages == kHugePages)
    madvise(reinterpret_cast<void*>(bytes.begin), bytes.end - bytes.begin, MADV_HUGEPAGE);
  return run.pages;
}

#else  // elsewhere the system does as it likes

FreshMemory::FreshMemory(std::vector<Span>) {}
FreshMemory::~FreshMemory() {}
void FreshMemory::back(uintptr_t, uintptr_t) {}
void FreshMemory::back_block(size_t) {}

#endif

}  // namespace fastinit
