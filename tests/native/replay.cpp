// Replays recorded calls of the native core without Python or torch: under sanitizers, and on other processors.
// replay.py records the calls, builds this program and compares what it writes.
//   replay                       prints the instruction sets that this processor has
//   replay CALLS MEMORY ISA      executes the calls, and writes all memory that they were given
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/dispatch.h"
#include "../../csrc/read_rows.h"

namespace {

using fastinit::FillDesc;
using fastinit::Kernels;

// replay.py's KINDS and PATTERN.
enum Kind : int64_t { kRun = 0, kFromWords = 1, kMultiplyAdd = 2, kDigest = 3, kCompare = 4, kReadRows = 5 };
constexpr int kPattern = 0xA5;  // what memory holds before a call

// The file is a sequence of calls: this, then buffer sizes (int64), records and inputs.
struct Header {
  int64_t kind, n_threads;
  int64_t n_callers;  // threads that make the call at the same time, each on memory of its own
  int64_t n_buffers, n_records, n_inputs;
};

struct Call {
  Header header;
  std::vector<int64_t> sizes;     // of the buffers, in bytes
  std::vector<FillDesc> records;  // `data` is not an address but buffer << 40 | byte
  std::vector<uint32_t> inputs;   // words, or the bits of all a, all b and all c of a * b + c
};

struct Free {
  void operator()(unsigned char* memory) const { std::free(memory); }
};
typedef std::unique_ptr<unsigned char, Free> Buffer;

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "replay: %s\n", message.c_str());
  std::exit(2);
}

std::FILE* opened(const char* path, const char* mode) {
  std::FILE* file = std::fopen(path, mode);
  if (file == nullptr) fail(std::string("cannot open ") + path);
  return file;
}

template <class T>
std::vector<T> numbers(std::FILE* file, int64_t n) {
  std::vector<T> read(static_cast<size_t>(n));
  if (std::fread(read.data(), sizeof(T), read.size(), file) != read.size()) fail("the file of calls ends within a call");
  return read;
}

bool next_call(std::FILE* file, Call& call) {
  if (std::fread(&call.header, sizeof call.header, 1, file) != 1) return false;
  call.sizes = numbers<int64_t>(file, call.header.n_buffers);
  call.records = numbers<FillDesc>(file, call.header.n_records);
  call.inputs = numbers<uint32_t>(file, call.header.n_inputs);
  return true;
}

// One caller's part. Its buffers have exactly their sizes, so AddressSanitizer sees any byte beyond.
std::vector<Buffer> execute(const Kernels& kernels, const Call& call) {
  std::vector<Buffer> buffers;
  for (const int64_t size : call.sizes) {
    buffers.emplace_back(static_cast<unsigned char*>(std::malloc(static_cast<size_t>(size))));
    if (buffers.back() == nullptr) fail("no memory");
    std::memset(buffers.back().get(), kPattern, static_cast<size_t>(size));
  }
  std::vector<FillDesc> records = call.records;
  for (FillDesc& record : records) {
    const uint64_t at = reinterpret_cast<uintptr_t>(record.data);
    record.data = buffers.at(at >> 40).get() + (at & ((uint64_t(1) << 40) - 1));
  }
  switch (call.header.kind) {
    case kRun:
      fastinit::run(kernels, records.data(), records.size(), static_cast<int>(call.header.n_threads));
      break;
    case kFromWords:
      kernels.fill_from_words(records.at(0), call.inputs.data());
      break;
    case kMultiplyAdd: {
      std::vector<float> abc(call.inputs.size());
      std::memcpy(abc.data(), call.inputs.data(), call.inputs.size() * sizeof(float));
      const size_t n = abc.size() / 3;
      float* out = reinterpret_cast<float*>(buffers.at(0).get());
      kernels.fma(abc.data(), abc.data() + n, abc.data() + 2 * n, static_cast<int64_t>(n), out);
      break;
    }
    case kDigest: {  // of recorded_calls.py's bytes; the sums go into the last buffer
      for (size_t k = 0; k + 1 < buffers.size(); ++k)
        for (int64_t i = 0; i < call.sizes[k]; ++i) buffers[k].get()[i] = static_cast<unsigned char>(37 * i + i / 11);
      const int n_threads = static_cast<int>(call.header.n_threads);
      uint64_t* sums = reinterpret_cast<uint64_t*>(buffers.back().get());
      fastinit::run_digest(kernels, records.data(), records.size(), n_threads, sums);
      break;
    }
    case kCompare: {  // with what fill writes, but for a byte in the middle of every third; what differs goes into the last
      const int n_threads = static_cast<int>(call.header.n_threads);
      fastinit::run(kernels, records.data(), records.size(), n_threads);
      for (size_t k = 0; k + 1 < buffers.size(); k += 3) buffers[k].get()[call.sizes[k] / 2] ^= 1;
      int64_t* first = reinterpret_cast<int64_t*>(buffers.back().get());
      fastinit::run_compare(kernels, records.data(), records.size(), n_threads, first);
      break;
    }
    case kReadRows: {  // of a file that holds the inputs behind ten numbers; whether it was complete goes into the last buffer
      int64_t number[10];
      std::memcpy(number, call.inputs.data(), sizeof number);
      std::FILE* file = std::tmpfile();
      if (file == nullptr) fail("cannot make a file");
      const size_t n_bytes = static_cast<size_t>(number[9]);
      const char* contents = reinterpret_cast<const char*>(call.inputs.data()) + sizeof number;
      if (std::fwrite(contents, 1, n_bytes, file) != n_bytes || std::fflush(file) != 0) fail("cannot write the file");
      fastinit::Rows rows{fileno(file), nullptr, number[0], number[1], number[2], number[3], number[4],
                                int32_t(number[5]), int32_t(number[6]), number[7], number[8],
                                reinterpret_cast<char*>(buffers.at(0).get())};
      buffers.at(1).get()[0] = fastinit::read_rows(kernels, rows);
      std::fclose(file);
      if (buffers.at(1).get()[0]) {  // the same out of memory, where the first row lies on a multiple of any element
        std::vector<char> mapping(8 - number[0] % 8 + n_bytes);
        std::memcpy(mapping.data() + mapping.size() - n_bytes, contents, n_bytes);
        std::vector<char> again(buffers.at(0).get(), buffers.at(0).get() + call.sizes[0]);
        for (int64_t row = 0; row < rows.n_rows; ++row)
          std::memset(again.data() + row * rows.memory_step, 1, rows.n_columns * rows.to_bytes);
        rows.mapping = mapping.data() + mapping.size() - n_bytes;
        rows.memory = again.data();
        if (!fastinit::read_rows(kernels, rows) || std::memcmp(again.data(), buffers.at(0).get(), again.size()) != 0)
          fail("a mapping gives other values than the file");
      }
      break;
    }
    default:
      fail("a call of an unknown kind");
  }
  return buffers;
}

void replay(const Kernels& kernels, std::FILE* calls, std::FILE* memory) {
  Call call;
  while (next_call(calls, call)) {
    std::vector<std::vector<Buffer>> made(static_cast<size_t>(call.header.n_callers));
    std::vector<std::thread> others;
    for (size_t i = 1; i < made.size(); ++i)
      others.emplace_back([&kernels, &call, &made, i] { made[i] = execute(kernels, call); });
    made[0] = execute(kernels, call);
    for (std::thread& other : others) other.join();
    for (const std::vector<Buffer>& buffers : made)
      for (size_t i = 0; i < buffers.size(); ++i)
        if (std::fwrite(buffers[i].get(), 1, static_cast<size_t>(call.sizes[i]), memory) != size_t(call.sizes[i]))
          fail("cannot write the memory");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    for (const Kernels* kernels : fastinit::instruction_sets()) std::puts(kernels->isa);
    return 0;
  }
  if (argc != 4) fail("usage: replay CALLS MEMORY ISA");
  for (const Kernels* kernels : fastinit::instruction_sets()) {
    if (std::strcmp(kernels->isa, argv[3]) != 0) continue;
    std::FILE* calls = opened(argv[1], "rb");
    std::FILE* memory = opened(argv[2], "wb");
    replay(*kernels, calls, memory);
    std::fclose(calls);
    if (std::fclose(memory) != 0) fail("cannot write the memory");
    return 0;
  }
  fail(std::string("no instruction set ") + argv[3]);
}
