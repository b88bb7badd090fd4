// Which kind of page memory gets that nobody has touched yet: the one that has cost less, as far as the blocks before it tell.
//
// What a page costs depends on what the machine did before. A virtual machine that hands idle memory back to its host pays 2
// to 6 ms for a huge page (2 MiB) that the host has to find, by the machine, and 0.3 ms for one that it still has; 512 small
// pages cost 0.6 ms where they come from memory that was in use just before, and up to 3 ms where not. On one machine huge
// pages for all were 7 times slower than small ones in memory that nobody had touched before, on another half as fast; in
// memory that another process had just freed they took half the time of small ones. So both kinds are tried, the cheaper one
// goes on, and the other is tried now and then. Rejected: to decide after the first pages (free lists begin with some that
// are cheap), and a limit in milliseconds (it is another machine's). benchmarks/bench_fresh.py measures it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastinit {

enum Pages : uint8_t { kSmallPages = 0, kHugePages = 1 };

class PageChoice {
 public:
  struct Run {  // of blocks that follow each other
    Pages pages;
    int n_blocks;
  };

  // Returns what the next blocks get.
  Run next() {
    if (n_asked_ < 2 * kFirst) return {n_asked_++ % 2 == 0 ? kHugePages : kSmallPages, 1};
    if (until_trial_ <= 0 && lost_ <= kLargestLoss * spent_) {
      interval_ = std::min(2 * interval_, kRarest);
      until_trial_ = interval_;
      return {other(), 1};
    }
    const int n_blocks = std::max(1, std::min(run_, until_trial_));
    run_ = std::min(2 * run_, kLongestRun);
    until_trial_ -= n_blocks;
    return {running_, n_blocks};
  }

  // Takes notice of what a block has cost, in seconds.
  void paid(Pages pages, double cost) {
    spent_ += cost;
    const double limited = are_known() ? std::min(cost, kOutlier * mean_[running_]) : cost;
    mean_[pages] += std::max(kNew, 1.0 / ++n_[pages]) * (limited - mean_[pages]);
    if (!are_known()) return;
    if (n_[pages] == kFirst) {
      running_ = mean_[kHugePages] <= mean_[kSmallPages] ? kHugePages : kSmallPages;
    } else if (pages == running_) {
      if (mean_[running_] > kSuddenly * mean_[other()]) turn();
    } else if (cost < kClearly * mean_[running_]) {
      if (++n_cheaper_ == 2) turn(); else until_trial_ = 0;  // once may be luck
    } else {
      n_cheaper_ = 0;
      lost_ += std::max(0.0, cost - mean_[running_]);
    }
  }

 private:
  // Blocks of each kind with which it begins: of one alone, one cheap page in fifty that are not tells too much.
  static constexpr int kFirst = 2;
  // A block counts as at most this many times the running kind's mean: one page in fifty that is cold tells little.
  static constexpr double kOutlier = 4.0;
  // The weight of the newest cost in a mean.
  static constexpr double kNew = 0.25;
  // The other kind takes over when a block of it costs less than this share of the running one's mean, twice in a row;
  static constexpr double kClearly = 0.7;
  // and at once when the running one's mean is this many times the other's.
  static constexpr double kSuddenly = 2.0;
  // No trial before those that failed have added less than this share to all costs: finding out is to cost under 2%.
  static constexpr double kLargestLoss = 0.015;
  // Blocks from one trial to the next: 2, 4, 8, ... up to this many.
  static constexpr int kRarest = 64;
  // To ask for huge pages stops all threads that are just getting some, so it is done for up to this many blocks at a time: with
  // two threads that ask block by block, 2 GB took 0.5 s, and 0.18 s in one request.
  static constexpr int kLongestRun = 32;

  Pages other() const { return Pages(1 - running_); }

  bool are_known() const { return std::min(n_[kSmallPages], n_[kHugePages]) >= kFirst; }

  void turn() {
    running_ = other();
    n_cheaper_ = 0;
    interval_ = until_trial_ = 2;
    run_ = 1;
  }

  Pages running_ = kHugePages;
  double mean_[2] = {0, 0}, lost_ = 0, spent_ = 0;
  int n_[2] = {0, 0}, n_asked_ = 0, n_cheaper_ = 0, interval_ = 2, until_trial_ = 2, run_ = 1;
};

}  // namespace fastinit
