"""Unsupported operators, each with the true reason."""

from __future__ import annotations

_QUANTIZED = "the file is quantized to integers; give the float file that it was made from"
_LOOP = "its number of iterations depends on the data; export the model with a fixed number of steps, unrolled"
_STRINGS = "it works on strings, but only numbers can be trained on; give a file that takes numbers"
_SEQUENCE = "it creates a list of tensors, which a tensor graph cannot hold"
_TREES = "trees are not neural networks; nothing in them can be pruned here"
_COMPLEX = "it produces complex numbers, which are not supported"
_RANDOM = "its result is random, so two runs of the model differ"
_COUNT = "the size of its result depends on the data"
_ZIPMAP = "it returns the probabilities as dictionaries; export with options={'zipmap': False}"

_REASONS = {
    _QUANTIZED: (
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger",
        "ConvInteger", "com.microsoft::QAttention", "com.microsoft::QGemm", "com.microsoft::QLinearAdd",
        "com.microsoft::QLinearAveragePool", "com.microsoft::QLinearConcat", "com.microsoft::QLinearConv",
        "com.microsoft::QLinearGlobalAveragePool", "com.microsoft::QLinearLeakyRelu", "com.microsoft::QLinearMul",
        "com.microsoft::QLinearSigmoid", "com.microsoft::QLinearSoftmax", "com.microsoft::DynamicQuantizeLSTM",
        "com.microsoft::DynamicQuantizeMatMul", "com.microsoft::MatMulIntegerToFloat", "com.microsoft::MatMulNBits",
        "com.microsoft::QuantizeLinear", "com.microsoft::DequantizeLinear", "com.microsoft::QEmbedLayerNormalization",
    ),
    _LOOP: ("Loop", "Scan"),
    _STRINGS: (
        "StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer",
        "ai.onnx.ml::CategoryMapper", "ai.onnx.ml::LabelEncoder", "ai.onnx.ml::DictVectorizer", "ai.onnx.ml::CastMap",
    ),
    _SEQUENCE: (
        "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
        "SequenceMap", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement",
    ),
    _TREES: (
        "ai.onnx.ml::TreeEnsemble", "ai.onnx.ml::TreeEnsembleClassifier", "ai.onnx.ml::TreeEnsembleRegressor",
        "ai.onnx.ml::SVMClassifier", "ai.onnx.ml::SVMRegressor",
    ),
    _COMPLEX: ("DFT", "STFT"),
    _RANDOM: ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
    _COUNT: ("NonZero", "Unique", "Compress", "NonMaxSuppression"),
    _ZIPMAP: ("ai.onnx.ml::ZipMap",),
}  # fmt: skip
_BY_OPERATOR = {name: reason for reason, names in _REASONS.items() for name in names}


def reason_against(name: str) -> str:
    """Return why an operator is not supported; ``name`` includes its domain, as in the table of operators.

    Examples:
        >>> reason_against("Loop").partition(";")[0]
        'its number of iterations depends on the data'
        >>> reason_against("NoSuchOperator")
        'this operator is not supported'
    """
    unknown = "this operator is not supported"
    return _BY_OPERATOR.get(name, unknown)
