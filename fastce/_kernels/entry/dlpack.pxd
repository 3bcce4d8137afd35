cimport numpy as cnp

cpdef cnp.ndarray array_of(object a)
