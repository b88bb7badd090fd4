// Conversions between the dtypes of files and of models, on the CPU.
#pragma once

#include "fill.h"

namespace fastinit {
namespace FASTINIT_ISA {

bool convert(int32_t from, int32_t to, const void* in, void* out, int64_t n);

}  // namespace FASTINIT_ISA
}  // namespace fastinit
