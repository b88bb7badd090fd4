// The one file that sees pybind11, and the choice of an instruction set. Pointers and sizes cross, no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "fill.h"

namespace py = pybind11;

namespace fastinit {

#if defined(__x86_64__)
namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
#endif
namespace baseline { extern const Kernels kernels; }

namespace {

// The instruction sets that this processor has, the best first.
std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&avx512::kernels);
  // Every processor with AVX2 and FMA has F16C, which came earlier.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
  found.push_back(&baseline::kernels);
  return found;
}

const Kernels& chosen(const std::string& isa) {
  for (const Kernels* kernels : available())
    if (isa.empty() || isa == kernels->isa) return *kernels;
  throw py::value_error("the instruction set '" + isa + "' is not one that this processor has");
}

// Elements that a thread takes at a time: 256 KiB of float32 stay in the second-level cache, take some 50 us, and are
// enough pieces to keep the cores of a large machine equally busy.
constexpr int64_t kPiece = 1 << 16;

// Runs all fills, pieces of them taken in order by the threads from one counter.
void run(const Kernels& kernels, const FillDesc* fills, size_t n_fills, int n_threads) {
  std::vector<int64_t> first_piece(n_fills + 1, 0);
  for (size_t i = 0; i < n_fills; ++i)
    first_piece[i + 1] = first_piece[i] + (fills[i].n_elements + kPiece - 1) / kPiece;
  const int64_t n_pieces = first_piece[n_fills];
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < n_pieces;) {
      const size_t which = size_t(std::upper_bound(first_piece.begin(), first_piece.end(), piece) - first_piece.begin()) - 1;
      const int64_t begin = (piece - first_piece[which]) * kPiece;
      kernels.fill_range(fills[which], begin, std::min(begin + kPiece, fills[which].n_elements));
    }
  };
  // Threads are made anew for each call: that costs microseconds, and survives fork.
  std::vector<std::thread> threads;
  const int64_t wanted = std::min<int64_t>(n_threads, n_pieces) - 1;
  for (int64_t i = 0; i < wanted; ++i) {
    try {
      threads.emplace_back(work);
    } catch (const std::system_error&) {
      break;  // the system gives no more threads: those that there are do the work
    }
  }
  work();
  for (std::thread& thread : threads) thread.join();
}

void fill(const py::array_t<uint8_t, py::array::c_style>& table, int n_threads, const std::string& isa) {
  if (size_t(table.size()) % sizeof(FillDesc) != 0) throw py::value_error("the table is no whole number of records");
  if (n_threads < 1) throw py::value_error("n_threads must be at least 1");
  const Kernels& kernels = chosen(isa);
  const FillDesc* fills = reinterpret_cast<const FillDesc*>(table.data());
  const size_t n_fills = size_t(table.size()) / sizeof(FillDesc);
  py::gil_scoped_release released;
  run(kernels, fills, n_fills, n_threads);
}

py::array_t<uint32_t> words(uint64_t seed, uint64_t offset, uint64_t first, int64_t n, const std::string& isa) {
  py::array_t<uint32_t> out(n);
  chosen(isa).write_words(seed, offset, first, n, out.mutable_data());
  return out;
}

py::tuple normal_pairs(const py::array_t<uint32_t, py::array::c_style>& w0,
                       const py::array_t<uint32_t, py::array::c_style>& w1, const std::string& isa) {
  if (w0.size() != w1.size()) throw py::value_error("w0 and w1 differ in size");
  py::array_t<float> z0(w0.size()), z1(w0.size());
  chosen(isa).normal_pairs(w0.data(), w1.data(), w0.size(), z0.mutable_data(), z1.mutable_data());
  return py::make_tuple(z0, z1);
}

py::array_t<float> fma(const py::array_t<float, py::array::c_style>& a, const py::array_t<float, py::array::c_style>& b,
                       const py::array_t<float, py::array::c_style>& c, const std::string& isa) {
  if (a.size() != b.size() || a.size() != c.size()) throw py::value_error("a, b and c differ in size");
  py::array_t<float> out(a.size());
  chosen(isa).fma(a.data(), b.data(), c.data(), a.size(), out.mutable_data());
  return out;
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.push_back(kernels->isa);
  return names;
}

}  // namespace
}  // namespace fastinit

PYBIND11_MODULE(_native, module) {
  module.doc() = "fastinit's kernels for the CPU";
  module.attr("RECORD_BYTES") = sizeof(fastinit::FillDesc);
  module.attr("MAX_DIMS") = fastinit::kMaxDims;
  module.attr("MAX_PARAMS") = fastinit::kMaxParams;
  module.def("instruction_sets", &fastinit::instruction_sets, "Returns what this processor has, the best first.");
  module.def("fill", &fastinit::fill, py::arg("table"), py::arg("n_threads"), py::arg("isa") = "",
             "Executes a table of FillDesc records; the memory that they point to must stay alive.");
  module.def("words", &fastinit::words, py::arg("seed"), py::arg("offset"), py::arg("first"), py::arg("n"),
             py::arg("isa") = "", "Returns n words of a stream.");
  module.def("normal_pairs", &fastinit::normal_pairs, py::arg("w0"), py::arg("w1"), py::arg("isa") = "",
             "Returns the two standard normals of each pair of words.");
  module.def("fma", &fastinit::fma, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("isa") = "",
             "Returns a * b + c, rounded once: an instruction, or its equal in software.");
}
