// The only file that uses pybind11. Pointers and sizes cross; torch does not.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <errno.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "read_rows.h"

namespace py = pybind11;

namespace fastinit {

namespace {

const Kernels& chosen(const std::string& isa) {
  for (const Kernels* kernels : instruction_sets())
    if (isa.empty() || isa == kernels->isa) return *kernels;
  throw py::value_error("this processor does not have the instruction set '" + isa + "'");
}

typedef py::array_t<uint8_t, py::array::c_style> Table;

size_t n_records(const Table& table) {
  if (size_t(table.size()) % sizeof(FillDesc) != 0) throw py::value_error("the table's size is not a multiple of a record's");
  return size_t(table.size()) / sizeof(FillDesc);
}

// Runs work without the GIL.
//
// A daemon thread that comes back while Python is ending waits here for the end of the process, as Python 3.14 has it.
// Earlier ones end the thread by unwinding its stack: through a destructor, as of pybind11's gil_scoped_release, that
// aborts the process, and any other would drop references without the GIL.
template <class Work>
void without_gil(const Work& work) {
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    work();
  } catch (...) {
    error = std::current_exception();
  }
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
  if (error) std::rethrow_exception(error);
}

// What Python does while the core works: handles Ctrl-C and other signals, and hears how far it is.
class Listener {
 public:
  Listener(const FillDesc* records, size_t n_records, bool handles_signals, const py::object& advance)
      : handles_signals_(handles_signals), advance_(advance) {
    for (size_t i = 0; i < n_records; ++i) n_bytes_ += records[i].n_elements * records[i].element_bytes;
  }

  // For without the GIL. It stops the work where Python has raised.
  Watch watch() {
    if (!handles_signals_ && advance_.is_none()) return nullptr;
    return [this](int64_t n_bytes) {
      const py::gil_scoped_acquire acquired;
      if (handles_signals_ && PyErr_CheckSignals() != 0) return true;
      try {
        tell(n_bytes);
      } catch (py::error_already_set& error) {
        error.restore();
        return true;
      }
      return false;
    };
  }

  // Raises what Python has raised meanwhile, or says that all is done.
  void end() {
    if (PyErr_Occurred()) throw py::error_already_set();
    tell(n_bytes_);
  }

 private:
  void tell(int64_t n_bytes) {
    if (!advance_.is_none() && n_bytes > told_) advance_(n_bytes - told_);
    told_ = n_bytes;
  }

  const bool handles_signals_;
  const py::object& advance_;
  int64_t n_bytes_ = 0, told_ = 0;
};

// The records of a table that is to be drawn.
const FillDesc* fills_of(const Table& table) {
  const size_t n_fills = n_records(table);
  const FillDesc* fills = reinterpret_cast<const FillDesc*>(table.data());
  for (size_t i = 0; i < n_fills; ++i)
    if (fills[i].distribution == kWords && fills[i].dtype != kFloat32)
      throw py::value_error("kWords records need the dtype float32");
  return fills;
}

void fill(const Table& table, int n_threads, const std::string& isa, bool handles_signals,
          const py::object& advance) {
  const size_t n_fills = n_records(table);
  if (n_threads < 1) throw py::value_error("n_threads must be at least 1");
  const Kernels& kernels = chosen(isa);
  const FillDesc* fills = fills_of(table);
  Listener listener(fills, n_fills, handles_signals, advance);
  without_gil([&] { run(kernels, fills, n_fills, n_threads, listener.watch()); });
  listener.end();
}

py::array_t<uint64_t> digest(const Table& table, int n_threads, const std::string& isa, bool handles_signals,
                             const py::object& advance) {
  const size_t n_boxes = n_records(table);
  if (n_threads < 1) throw py::value_error("n_threads must be at least 1");
  const Kernels& kernels = chosen(isa);
  const FillDesc* boxes = reinterpret_cast<const FillDesc*>(table.data());
  py::array_t<uint64_t> sums(static_cast<py::ssize_t>(n_boxes));
  uint64_t* out = sums.mutable_data();
  Listener listener(boxes, n_boxes, handles_signals, advance);
  without_gil([&] { run_digest(kernels, boxes, n_boxes, n_threads, out, listener.watch()); });
  listener.end();
  return sums;
}

void back(const py::array_t<uint64_t, py::array::c_style>& spans, int n_threads) {
  if (spans.ndim() != 2 || spans.shape(1) != 2) throw py::value_error("expected rows of two addresses");
  if (n_threads < 1) throw py::value_error("n_threads must be at least 1");
  std::vector<Span> all;
  for (py::ssize_t i = 0; i < spans.shape(0); ++i) all.push_back({uintptr_t(spans.at(i, 0)), uintptr_t(spans.at(i, 1))});
  without_gil([&] { back_all(all, n_threads); });
}

py::array_t<uint8_t> choose_pages(const py::array_t<double, py::array::c_style>& small,
                                  const py::array_t<double, py::array::c_style>& huge) {
  if (small.size() != huge.size()) throw py::value_error("small and huge differ in size");
  py::array_t<uint8_t> chosen(small.size());
  PageChoice choice;
  for (py::ssize_t i = 0; i < small.size();) {
    const PageChoice::Run run = choice.next();
    for (const py::ssize_t end = std::min(small.size(), i + run.n_blocks); i < end; ++i) {
      chosen.mutable_at(i) = run.pages;
      choice.paid(run.pages, (run.pages == kHugePages ? huge : small).at(i));
    }
  }
  return chosen;
}

py::array_t<int64_t> compare(const Table& table, int n_threads, const std::string& isa, bool handles_signals,
                             const py::object& advance) {
  const size_t n_fills = n_records(table);
  if (n_threads < 1) throw py::value_error("n_threads must be at least 1");
  const Kernels& kernels = chosen(isa);
  const FillDesc* fills = fills_of(table);
  py::array_t<int64_t> first(static_cast<py::ssize_t>(n_fills));
  int64_t* out = first.mutable_data();
  Listener listener(fills, n_fills, handles_signals, advance);
  without_gil([&] { run_compare(kernels, fills, n_fills, n_threads, out, listener.watch()); });
  listener.end();
  return first;
}

bool converts(int32_t from, int32_t to) { return chosen("").convert(from, to, nullptr, nullptr, 0); }

bool read_rows_into(int fd, int64_t offset, std::pair<int64_t, int64_t> shape, std::pair<int64_t, int64_t> steps,
                    std::pair<int32_t, int32_t> dtypes, std::pair<int64_t, int64_t> item_bytes, uintptr_t address,
                    uintptr_t mapping, const std::string& isa) {
  const Kernels& kernels = chosen(isa);
  const Rows rows{fd,
                  reinterpret_cast<const char*>(mapping),
                  offset,
                  shape.first,
                  shape.second,
                  steps.first,
                  steps.second,
                  dtypes.first,
                  dtypes.second,
                  item_bytes.first,
                  item_bytes.second,
                  reinterpret_cast<char*>(address)};
  bool is_complete = false;
  try {
    without_gil([&] { is_complete = read_rows(kernels, rows); });
  } catch (const std::system_error& error) {
    errno = error.code().value();
    PyErr_SetFromErrno(PyExc_OSError);
    throw py::error_already_set();
  }
  return is_complete;
}

void fill_from(const Table& table, const py::array_t<uint32_t, py::array::c_style>& words, const std::string& isa) {
  if (n_records(table) != 1) throw py::value_error("the table must hold exactly one record");
  const FillDesc& fill = *reinterpret_cast<const FillDesc*>(table.data());
  if (words.size() != fill.n_elements || fill.n_elements % kMaxTile != 0)
    throw py::value_error("expected one word per element, and a multiple of " + std::to_string(kMaxTile) + " elements");
  if ((fill.dtype == kFloat32) == (fill.distribution == kWords) || fill.dtype == kFloat64 || fill.dtype == kRaw)
    throw py::value_error("fill_from takes float32 records, or kWords records of a narrower dtype");
  const Kernels& kernels = chosen(isa);
  without_gil([&] { kernels.fill_from_words(fill, words.data()); });
}

py::array_t<float> fma(const py::array_t<float, py::array::c_style>& a, const py::array_t<float, py::array::c_style>& b,
                       const py::array_t<float, py::array::c_style>& c, const std::string& isa) {
  if (a.size() != b.size() || a.size() != c.size()) throw py::value_error("a, b and c differ in size");
  py::array_t<float> out(a.size());
  chosen(isa).fma(a.data(), b.data(), c.data(), a.size(), out.mutable_data());
  return out;
}

std::vector<std::string> names_of_instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : instruction_sets()) names.push_back(kernels->isa);
  return names;
}

}  // namespace
}  // namespace fastinit

PYBIND11_MODULE(_native, module) {
  module.doc() = "fastinit's kernels for the CPU";
  module.attr("RECORD_BYTES") = sizeof(fastinit::FillDesc);
  module.attr("MAX_DIMS") = fastinit::kMaxDims;
  module.attr("MAX_PARAMS") = fastinit::kMaxParams;
  module.def("instruction_sets", &fastinit::names_of_instruction_sets, "Returns what this processor has, the best first.");
  module.def("fill", &fastinit::fill, py::arg("table"), py::arg("n_threads"), py::arg("isa") = "",
             py::arg("handles_signals") = false, py::arg("advance") = py::none(),
             "Executes a table of FillDesc records; the memory that they point to must stay alive. handles_signals: the "
             "caller is Python's main thread, and an exception of a signal handler ends the work. advance: called now and then "
             "with how many more bytes are done.");
  module.def("digest", &fastinit::digest, py::arg("table"), py::arg("n_threads"), py::arg("isa") = "",
             py::arg("handles_signals") = false, py::arg("advance") = py::none(),
             "Returns for each record of a table the sum modulo 2^64 of its elements' mixed words, which it reads only.");
  module.def("back", &fastinit::back, py::arg("spans"), py::arg("n_threads"),
             "Gives memory that nobody has touched its pages, and leaves its contents: rows of (begin, end), addresses of "
             "mapped memory that is about to be written.");
  module.def("choose_pages", &fastinit::choose_pages, py::arg("small"), py::arg("huge"),
             "For tests: returns which blocks get huge pages (1) if a block costs so many seconds by either kind.");
  module.def("compare", &fastinit::compare, py::arg("table"), py::arg("n_threads"), py::arg("isa") = "",
             py::arg("handles_signals") = false, py::arg("advance") = py::none(),
             "Returns for each record the first of its elements, row-major in its box, whose bytes in memory are not those "
             "that fill would write, or -1. Memory is read only.");
  module.def("converts", &fastinit::converts, py::arg("from_dtype"), py::arg("to_dtype"),
             "Returns whether read_rows converts between two dtypes of records.");
  module.def("read_rows", &fastinit::read_rows_into, py::arg("fd"), py::arg("offset"), py::arg("shape"), py::arg("steps"),
             py::arg("dtypes"), py::arg("item_bytes"), py::arg("address"), py::arg("mapping") = 0, py::arg("isa") = "",
             "Reads rows of a file into memory. offset: of the first, in bytes; shape: rows and columns; steps: from row to "
             "row in the file and in memory, in bytes; dtypes, item_bytes: in the file and in memory; mapping: the address of "
             "the file's first byte in memory if it is mapped and has all of the rows, else 0. Returns False if the file ends "
             "before; raises OSError.");
  module.def("fill_from", &fastinit::fill_from, py::arg("table"), py::arg("words"), py::arg("isa") = "",
             "Executes one record on given words, in place of those of its stream.");
  module.def("fma", &fastinit::fma, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("isa") = "",
             "Returns a * b + c, rounded once: an instruction, or its equal in software.");
}
