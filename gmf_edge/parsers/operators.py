"""What the importers of NVIDIA's ONNX parser (onnx-tensorrt) take of the operators of these graphs, by version.

Read in the parser's source; what was read, and where, is in PARSERS and in each row's `source`. A row is what was read and no more:
another operator, opset or type may be taken as well, but nobody has looked.

Where a release's own source was not at hand, the nearest release before and the nearest after it were read, and a row holds what is the
same in both: TensorRT 10.3 lies between 10.1 and 10.6; 11 stands on the source of 11.0. The types of strongly typed networks are those
of NvInfer.h of the version itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx_ir import DataType

from gmf_edge.spec import TARGETS

FLOAT, HALF, BF16 = DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16
FLOATS = (FLOAT, HALF, BF16)


@dataclass(frozen=True)
class Parser:
    """The ONNX parser of one version of TensorRT.

    Attributes:
        target: row of gmf_edge.spec.TARGETS.
        opsets: first and last ONNX opset that its documentation names.
        floats: floating types of tensors.
        initializers: types of initializers; INT64 becomes INT32 on 8.6.
        narrow_int64: whether it does.
        expands_functions: whether a node that names a function of the model becomes that function's body.
        q_scale: dtype of a QuantizeLinear's scale: "float32"; "input", that of its input; "float32 or input".
        read: what of the parser was read, onnx-tensorrt's commit and release.
    """

    target: str
    opsets: tuple[int, int]
    floats: tuple[DataType, ...]
    initializers: tuple[DataType, ...]
    narrow_int64: bool
    expands_functions: bool
    q_scale: str
    read: tuple[str, ...]

    @property
    def strong(self) -> bool:
        """Whether these graphs are built strongly typed there."""
        return TARGETS[self.target].typing == "strong"

    @property
    def version(self) -> str:
        """The version as it is told."""
        return self.target.removeprefix("tensorrt-")


_NEW = (FLOAT, HALF, BF16, DataType.INT8, DataType.INT32, DataType.INT64, DataType.BOOL)
# operators.md of each release for the opsets, convertOnnxWeights for initializers, IQuantizeLayer's comment for q_scale
PARSERS: dict[str, Parser] = {
    parser.target: parser
    for parser in (
        Parser(
            "tensorrt-8.6",
            (7, 17),
            (FLOAT, HALF),
            (FLOAT, HALF, DataType.INT8, DataType.INT32, DataType.INT64, DataType.BOOL),
            narrow_int64=True,
            expands_functions=False,
            q_scale="float32",  # the importer reads the scale's bytes as float, whatever its type
            read=("6ba67d3 (8.6 GA)",),
        ),
        Parser(
            "tensorrt-10.3",
            (9, 20),
            FLOATS,
            _NEW,
            narrow_int64=False,
            expands_functions=True,
            q_scale="input",
            read=("96e7811 (10.1 GA)", "0137504 (10.6)"),
        ),
        Parser(
            "tensorrt-10.13",
            (9, 20),
            FLOATS,
            _NEW,
            narrow_int64=False,
            expands_functions=True,
            q_scale="float32 or input",
            read=("346bdca (10.13.0)",),
        ),
        Parser(
            "tensorrt-11",
            (9, 20),
            FLOATS,
            _NEW,
            narrow_int64=False,
            expands_functions=True,
            q_scale="float32 or input",
            read=("5ab48c5 (11.0)",),
        ),
    )
}
EVERY = tuple(PARSERS)
TEN_AND_NEWER = tuple(target for target in EVERY if target != "tensorrt-8.6")


@dataclass(frozen=True)
class Importer:
    """What one operator's importer takes.

    Attributes:
        operator: ONNX op_type of the default domain.
        source: where that stands, "file:line of 8.6 GA / of 10.1 GA" or a name that is the same in all.
        targets: the parsers that have it.
        floats: types of its floating inputs, besides the parser's own limits.
        one_type: whether all its floating inputs have one type in a strongly typed network.
        constants: numbers of inputs that must be initializers, or were read as such.
        since: the first opset that has the operator.
        rules: names of functions in check.py: what else must hold.
    """

    operator: str
    source: str
    targets: tuple[str, ...] = EVERY
    floats: tuple[DataType, ...] = FLOATS
    one_type: bool = True
    constants: tuple[int, ...] = ()
    since: int = 1
    rules: tuple[str, ...] = ()


_BUILTIN = "builtin_op_importers.cpp:{} / onnxOpImporters.cpp:{}"
_ROWS = (
    Importer("Add", _BUILTIN.format(154, 177), rules=("same_or_broadcast",)),
    Importer("Cast", _BUILTIN.format(285, 385), rules=("cast_target",)),
    Importer("Concat", _BUILTIN.format(539, 649), rules=("axis_in_range",)),
    # bias: assertIsWeights; weights as a tensor go another way (convMultiInput), which was not read for these graphs
    Importer("Conv", _BUILTIN.format(632, 737), constants=(1, 2), rules=("convolution",)),
    Importer("DequantizeLinear", _BUILTIN.format(1157, 1346), one_type=False, constants=(1, 2), rules=("quantization",)),
    Importer("Div", _BUILTIN.format(1321, 1694), rules=("same_or_broadcast",)),
    Importer("Erf", _BUILTIN.format(1429, 1801)),
    Importer("Flatten", _BUILTIN.format(1523, 1898), rules=("axis_in_range",)),
    Importer("Gelu", _BUILTIN.format("none", 1990), targets=TEN_AND_NEWER, since=20, rules=("gelu_form",)),
    Importer("Gemm", _BUILTIN.format(1598, 2009), rules=("matrices",)),
    Importer("GlobalAveragePool", _BUILTIN.format(1671, 2085)),
    Importer("HardSigmoid", _BUILTIN.format(2108, 2564)),
    # "Only FLOAT, HALF or INT8 input is supported for the HardSwish operator": so in every version that was read, whatever
    # operators.md says of BF16
    Importer("HardSwish", _BUILTIN.format(5368, 6385), floats=(FLOAT, HALF), since=14),
    Importer("Identity", _BUILTIN.format(2116, 2572)),
    Importer("LayerNormalization", _BUILTIN.format(2270, 2752), since=17, rules=("layer_normalization",)),
    Importer("MatMul", _BUILTIN.format(2894, 3407), rules=("matrices",)),
    Importer("Mul", _BUILTIN.format(3057, 3568), rules=("same_or_broadcast",)),
    Importer("QuantizeLinear", _BUILTIN.format(1157, 1346), one_type=False, constants=(1, 2), rules=("quantization",)),
    Importer("Reshape", _BUILTIN.format(3909, 4647), constants=(1,), rules=("reshape",)),
    Importer("Softmax", _BUILTIN.format(4567, 5404), since=13, rules=("axis_in_range",)),
    Importer("Split", _BUILTIN.format(4630, 5469), constants=(1,), since=13, rules=("axis_in_range", "split")),
    # 8.6: "Squeeze axes input must be an initializer!"
    Importer("Squeeze", _BUILTIN.format(4738, 5608), constants=(1,), since=13),
    Importer("Transpose", _BUILTIN.format(4923, 5790)),
    Importer("Unsqueeze", _BUILTIN.format(4995, 5874), constants=(1,), since=13),
)
IMPORTERS: dict[str, Importer] = {row.operator: row for row in _ROWS}
# of a plugin node, as it is looked up: FallbackPluginImporter
PLUGIN_SOURCE = _BUILTIN.format(5395, 6438)
