#include "read_rows.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace fastinit {

namespace {

// Half of the second-level cache of older processors, and enough that a system call (0.3 us) costs little.
constexpr int64_t kBufferBytes = 128 << 10;
// Gaps between rows up to this size are read with them: memory moves some kilobytes during a system call.
// The same bound as _MAX_GAP_BYTES of fastinit/checkpoint/storage/batches.py, which counts what is read.
constexpr int64_t kMaxGapBytes = 4096;
// With gaps up to this size the system is asked to fetch the rows ahead, and what lies between: page by page, a disk would take
// longer. The same bound as _MAX_APART_BYTES of fastinit/checkpoint/storage/batches.py.
constexpr int64_t kMaxApartBytes = 64 << 10;

bool read_all(int fd, char* out, int64_t n_bytes, int64_t offset) {
  while (n_bytes > 0) {
    const ssize_t n = pread(fd, out, size_t(n_bytes), off_t(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw std::system_error(errno, std::generic_category());
    if (n == 0) return false;
    out += n, offset += n, n_bytes -= n;
  }
  return true;
}

class Reader {
 public:
  Reader(const Kernels& kernels, const Rows& rows)
      : kernels_(kernels),
        rows_(rows),
        is_same_(rows.from == kRaw && rows.to == kRaw),
        buffer_(rows.mapping ? 0 : kBufferBytes) {
    if (!is_same_ && !kernels.convert(rows.from, rows.to, nullptr, nullptr, 0))
      throw std::invalid_argument("no such conversion is known");
  }

  bool run() {
    if (rows_.mapping) return copy_mapped(), true;
    const int64_t row_bytes = rows_.n_columns * rows_.from_bytes, gap = rows_.file_step - row_bytes;
    if (gap <= kMaxGapBytes && rows_.file_step <= kBufferBytes) return read_together(row_bytes);
#if defined(POSIX_FADV_WILLNEED)
    if (rows_.n_rows > 1 && gap > kMaxGapBytes && gap <= kMaxApartBytes)
      posix_fadvise(rows_.fd, rows_.offset, (rows_.n_rows - 1) * rows_.file_step + row_bytes, POSIX_FADV_WILLNEED);
#endif
    for (int64_t row = 0; row < rows_.n_rows; ++row)
      if (!read_row(rows_.offset + row * rows_.file_step, rows_.memory + row * rows_.memory_step)) return false;
    return true;
  }

 private:
  void copy_mapped() {
    for (int64_t row = 0; row < rows_.n_rows; ++row)
      turn(rows_.mapping + rows_.offset + row * rows_.file_step, rows_.memory + row * rows_.memory_step, rows_.n_columns);
  }

  // Several rows a system call, and what is between them.
  bool read_together(int64_t row_bytes) {
    const int64_t at_once = std::max<int64_t>(1, kBufferBytes / rows_.file_step);
    for (int64_t first = 0; first < rows_.n_rows; first += at_once) {
      const int64_t n = std::min(at_once, rows_.n_rows - first);
      const int64_t n_bytes = (n - 1) * rows_.file_step + row_bytes;
      if (!read_all(rows_.fd, buffer_.data(), n_bytes, rows_.offset + first * rows_.file_step)) return false;
      for (int64_t i = 0; i < n; ++i)
        turn(buffer_.data() + i * rows_.file_step, rows_.memory + (first + i) * rows_.memory_step, rows_.n_columns);
    }
    return true;
  }

  bool read_row(int64_t offset, char* memory) {
    if (is_same_) return read_all(rows_.fd, memory, rows_.n_columns * rows_.from_bytes, offset);
    const int64_t at_once = kBufferBytes / rows_.from_bytes;
    for (int64_t first = 0; first < rows_.n_columns; first += at_once) {
      const int64_t n = std::min(at_once, rows_.n_columns - first);
      if (!read_all(rows_.fd, buffer_.data(), n * rows_.from_bytes, offset + first * rows_.from_bytes)) return false;
      turn(buffer_.data(), memory + first * rows_.to_bytes, n);
    }
    return true;
  }

  void turn(const char* in, char* out, int64_t n) {
    if (is_same_)
      std::memcpy(out, in, size_t(n * rows_.from_bytes));
    else
      kernels_.convert(rows_.from, rows_.to, in, out, n);
  }

  const Kernels& kernels_;
  const Rows& rows_;
  const bool is_same_;
  std::vector<char> buffer_;  // from operator new: aligned for every element
};

}  // namespace

bool read_rows(const Kernels& kernels, const Rows& rows) { return Reader(kernels, rows).run(); }

}  // namespace fastinit
