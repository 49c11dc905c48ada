# interface_test.py <libgptq.so>: the C interface from Python, by ctypes alone. x, codes and scales are such that int8
# activations and float32 sums are exact, so the products are known.
import ctypes as c
import sys


class Format(c.Structure):
    _fields_ = [("scheme", c.c_int), ("bits", c.c_int), ("group_size", c.c_int)]


class Range(c.Structure):
    _fields_ = [("first", c.c_int64), ("last", c.c_int64)]


class Input(c.Structure):
    _fields_ = [("type", c.c_int), ("data", c.c_void_p), ("stride", c.c_int64)]


class Matrix(c.Structure):
    _fields_ = [("format", Format), ("place_of_format", c.c_int), ("rows", c.c_int64), ("columns", c.c_int64),
                ("codes", c.c_void_p), ("scales", c.c_void_p), ("zeros", c.c_void_p), ("order", c.c_void_p)]


class Activations(c.Structure):
    _fields_ = [("tokens", c.c_int64), ("columns", c.c_int64), ("group_columns", c.c_int64), ("digits", c.c_void_p),
                ("sums", c.c_void_p), ("scales", c.c_void_p), ("order", c.c_void_p)]


gptq = c.CDLL(sys.argv[1])
gptq.gptq_error_string.restype = gptq.gptq_isa.restype = c.c_char_p
gptq.gptq_packed_bytes.restype = gptq.gptq_workspace_bytes.restype = c.c_size_t
gptq.gptq_packed_bytes.argtypes = [Format, c.c_int64, c.c_int64, c.c_int]
gptq.gptq_pack.argtypes = [Format, c.c_int64, c.c_int64] + 5 * [c.c_void_p] + [c.c_size_t]
gptq.gptq_open.argtypes = [c.POINTER(Matrix), c.c_void_p, c.c_size_t]
gptq.gptq_workspace_bytes.argtypes = [c.POINTER(Matrix), c.c_int64]
gptq.gptq_prepare.argtypes = [c.POINTER(Activations), c.POINTER(Matrix), Input, c.c_int64, c.c_void_p, c.c_size_t, Range]
gptq.gptq_multiply.argtypes = [c.POINTER(Matrix), c.POINTER(Activations), c.c_void_p, c.c_int64, Range]


def check(status):
    if status != 0:
        sys.exit(f"status {status}: {gptq.gptq_error_string(status).decode()}")


rows, columns, tokens = 33, 64, 3
form = Format(scheme=0, bits=4, group_size=32)
groups = columns // form.group_size
codes = [(7 * r + 3 * k) % 16 for r in range(rows) for k in range(columns)]
zeros = [(r + g) % 16 for r in range(rows) for g in range(groups)]
scales = [2.0 ** (-(r + g) % 4) for r in range(rows) for g in range(groups)]
x = [127.0 if k % 32 == t else float((5 * k + t) % 50 - 25) for t in range(tokens) for k in range(columns)]

size = gptq.gptq_packed_bytes(form, rows, columns, 0)
packed = c.create_string_buffer(size)
check(gptq.gptq_pack(form, rows, columns, (c.c_uint8 * len(codes))(*codes), (c.c_float * len(scales))(*scales),
                     (c.c_uint8 * len(zeros))(*zeros), None, packed, size))
w, a = Matrix(), Activations()
check(gptq.gptq_open(c.byref(w), packed, size))
needed = gptq.gptq_workspace_bytes(c.byref(w), tokens)
workspace = c.create_string_buffer(needed)
values = (c.c_float * len(x))(*x)
check(gptq.gptq_prepare(c.byref(a), c.byref(w), Input(0, c.cast(values, c.c_void_p), columns), tokens, workspace, needed,
                        Range(0, tokens)))
y = (c.c_float * (tokens * rows))()
check(gptq.gptq_multiply(c.byref(w), c.byref(a), y, rows, Range(0, rows)))


def weight(r, k):
    at = r * groups + k // form.group_size
    return scales[at] * (codes[r * columns + k] - zeros[at])


expected = [sum(weight(r, k) * x[t * columns + k] for k in range(columns)) for t in range(tokens) for r in range(rows)]
if list(y) != expected:
    sys.exit(f"not what it should be: {[(i, a, b) for i, (a, b) in enumerate(zip(y, expected)) if a != b][:5]}")
packed[size - 100] = packed[size - 100][0] ^ 1
status = gptq.gptq_open(c.byref(w), packed, size)
if gptq.gptq_error_string(status) != b"a packed matrix whose bytes have changed":
    sys.exit(f"changed bytes: {gptq.gptq_error_string(status).decode()}")
print(gptq.gptq_isa().decode(), gptq.gptq_version())
