// Marks functions that both a CPU kernel and its CUDA twin call.
#pragma once

#if defined(__CUDACC__)
#define ATHANOR_HD __host__ __device__
#else
#define ATHANOR_HD
#endif
