/* All code of information measures, under one name each. Everything is static, as in elementwise.h. */
#ifndef FASTCE_INFORMATION_H
#define FASTCE_INFORMATION_H

#include <stdlib.h>

#include "vector/common.h"
#include "machine/environment.h"

#define REAL_BITS 64
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "vector/sums.h"
#include "elements/operands.h"
#include "elements/measures.h"
#undef REAL_BITS

#define REAL_BITS 32
#include "vector/simd.h"
#include "vector/vmath.h"
#include "vector/formats.h"
#include "elements/operands.h"
#include "elements/measures.h"
#undef REAL_BITS
#endif
