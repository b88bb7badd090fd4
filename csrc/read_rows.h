// Rows of a file, read into memory and converted on the way.
#pragma once

#include "fill.h"

namespace fastinit {

struct Rows {
  int fd;
  const char* mapping;              // of the whole file, which must have all of the rows; nullptr: they are read
  int64_t offset;                   // in the file, of the first row's first element, in bytes
  int64_t n_rows, n_columns;
  int64_t file_step, memory_step;   // from row to row, in bytes
  int32_t from, to;                 // DType in the file and in memory; both kRaw: bytes are copied
  int64_t from_bytes, to_bytes;     // of an element
  char* memory;                     // of the first row
};

// Reads the rows, through a buffer that stays in the core's cache or straight out of a mapping, in the caller's thread.
// Returns false if the file ends before; throws std::system_error if the system cannot read, std::invalid_argument if it
// does not know the conversion. What has been written by then stays.
bool read_rows(const Kernels& kernels, const Rows& rows);

}  // namespace fastinit
