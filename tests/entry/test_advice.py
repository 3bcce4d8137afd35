"""What errors tell to do: the table of docs/messages.md, and objects of libraries that may be missing."""

import re
from pathlib import Path

import numpy as np
import pytest

import fastce
from fastce._kernels.entry import advice

pytestmark = pytest.mark.once  # the levels share the source of the checks

PAGE = (Path(__file__).parents[2] / "docs" / "messages.md").read_text()
EXAMPLES = re.findall(r"^>>> (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)
ROWS = re.findall(r"^\| `(.+?)` \| (\w+): (.*) \|$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def names():
    found = {}
    for line in EXAMPLES:
        exec(line, found)
    return found


@pytest.mark.parametrize(("call", "kind", "message"), ROWS, ids=[call for call, *_ in ROWS])
def test_table(call, kind, message, names):
    with pytest.raises((IndexError, TypeError, ValueError)) as error:
        eval(f"fastce.{call}", names)
    assert (type(error.value).__name__, str(error.value)) == (kind, message)


def test_table_is_there():
    assert len(ROWS) > 20


# What the table tells to do makes the call work.
MENDED = (
    "cross_entropy(x, np.eye(3, dtype=int)[y].argmax(1))",
    "cross_entropy(x, np.eye(3, dtype=int)[y].astype(float))",
    "cross_entropy(x, y.astype(float).astype(int))",
    "cross_entropy(x, y[:, None].squeeze(1))",
    "cross_entropy(x, np.unique(['a', 'b', 'c', 'a'], return_inverse=True)[1])",
    "cross_entropy(x, y - 1, ignore_index=-1)",
    "cross_entropy(images, np.zeros((2, 4, 5), int), axis=1)",
    "binary_cross_entropy_with_logits(x, np.eye(3)[y])",
    "binary_cross_entropy_with_logits(x[:, :1], y.reshape(4, 1) % 2)",
    "binary_cross_entropy_with_logits(x, (np.sign(x) + 1) / 2)",
    "binary_cross_entropy_with_logits(images, images, pos_weight=np.ones(3).reshape(3, 1, 1))",
    "cross_entropy(x, y, weight=4 / (3 * np.bincount(y, minlength=3)))",
    "cross_entropy(x, y, sample_weight=np.ones(4))",
)


@pytest.mark.parametrize("call", MENDED)
def test_advice_helps(call, names):
    assert np.isfinite(eval(f"fastce.{call}", names))


class Tensor:
    """As PyTorch's, which need not be installed: `__array__` raises what its own does."""

    __module__ = "torch"

    def __init__(self, error, dtype="torch.float32", requires_grad=False, layout="torch.strided", **bits):
        self.error, self.dtype, self.requires_grad, self.layout = error, dtype, requires_grad, layout
        self.is_meta, self.is_nested, self.bits = "meta" in str(error), "Nested" in str(error), bits

    def is_conj(self):
        return "is_conj" in self.bits

    def is_neg(self):
        return "is_neg" in self.bits

    def __array__(self, dtype=None, copy=None):
        raise self.error


TENSORS = [
    (
        Tensor(RuntimeError("Can't call numpy() on Tensor that requires grad."), requires_grad=True),
        r"give \.detach\(\)",
    ),
    (Tensor(TypeError("can't convert cuda:0 device type tensor to numpy.")), r"with \.cpu\(\)"),
    (
        Tensor(TypeError("Got unsupported ScalarType BFloat16"), dtype="torch.bfloat16"),
        r"\.view\(torch\.int16\)",
    ),
    (
        Tensor(TypeError("can't convert Sparse layout tensor to numpy."), layout="torch.sparse_csr"),
        r"\.to_dense\(\)",
    ),
    (Tensor(RuntimeError("NestedTensorImpl doesn't support sizes.")), r"torch\.cat\("),
    (Tensor(TypeError("can't convert meta device type tensor to numpy.")), "no numbers"),
    (Tensor(RuntimeError("Tensor that has conjugate bit set."), is_conj=True), r"\.resolve_conj\(\)"),
    (Tensor(RuntimeError("Tensor that has negative bit set."), is_neg=True), r"\.resolve_neg\(\)"),
    (Tensor(TypeError("Got unsupported ScalarType Float8_e5m2"), dtype="torch.float8_e5m2"), r"\.float\(\)"),
    (Tensor(TypeError("Got unsupported ScalarType QUInt8"), dtype="torch.quint8"), r"\.dequantize\(\)"),
]


@pytest.mark.parametrize(("tensor", "expected"), TENSORS, ids=[str(tensor.error) for tensor, _ in TENSORS])
def test_tensors(tensor, expected):
    labels = np.array([0])
    calls = {
        "logits": lambda a: fastce.cross_entropy(a, labels),
        "target": lambda a: fastce.cross_entropy(np.ones((1, 2)), a),
        "weight": lambda a: fastce.cross_entropy(np.ones((1, 2)), labels, weight=a),
        "x": fastce.softmax,
        "p": fastce.information.entropy,
    }
    for name, call in calls.items():
        told = rf"^{name} is a torch\.Tensor .*{re.escape(str(tensor.error)[:-1])}.*{expected}"
        with pytest.raises(TypeError, match=told):
            call(tensor)


def test_lists_of_tensors_and_ragged_lists():
    with pytest.raises(TypeError, match=r"logits is a list .* torch\.stack"):
        fastce.cross_entropy([TENSORS[0][0]], [0])
    with pytest.raises(ValueError, match=r"logits is a list .*lists of one length"):
        fastce.cross_entropy([[1, 2, 3], [1, 2]], [0, 1])


def test_other_objects():
    class Frame:
        __module__ = "frames.core"

        def __array__(self, dtype=None, copy=None):
            raise TypeError("no numbers here")

    class Sparse:
        def toarray(self):
            raise AssertionError

    with pytest.raises(TypeError, match=r"logits is a frames\.Frame .*no numbers here"):
        fastce.cross_entropy(Frame(), [0])
    with pytest.raises(TypeError, match=r"toarray"):
        fastce.cross_entropy(Sparse(), [0])
    with pytest.raises(TypeError, match=r"leave out what is text"):
        fastce.cross_entropy(np.array([[1.0, "u"]], object), [0])
    assert advice.to_convert(np.zeros(2, "M8[s]")).endswith(".astype(float)")
