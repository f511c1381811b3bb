// As cuda_runtime.h: the double has one header.
#pragma once

#include <cuda_runtime.h>
