"""The operators that a graph may have here, by domain; what is in neither list is refused before a runtime sees it.

Standard operators: those that the exporter's rules write (export/portable/), those that torch's own exporter writes
for the evaluation and inference graphs of every case in docs/operators.md, and what else it writes for functions of the
same kinds. Left out, though standard, are operators that run graphs of their own (If, Loop, Scan, SequenceMap), draw at
random, take texts or images apart, or give as many values as the data say (NonZero, Unique): no exported graph has any.

com.microsoft, for training artifacts alone: gradients, and forward operators that keep something for them, as the
training wheel's generator writes them for the same cases; MaxPoolGrad and AveragePoolGrad it puts among the standard's.
None of them runs Python, as PythonOp of the same domain does, or reads files.
"""

STANDARD_OPERATORS = frozenset(
    b"""
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool AveragePoolGrad BatchNormalization
    BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Col2Im Concat Constant
    ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DFT DepthToSpace Div Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization
    IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool
    MaxPoolGrad Mean Min Mish Mod Mul Neg NegativeLogLikelihoodLoss Not OneHot Or PRelu Pad Pow RNN Range
    Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu SequenceAt Shape Shrink
    Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split
    SplitToSequence Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
    """.split()
)

ARTIFACT_OPERATORS = frozenset(
    b"""
    AdamWOptimizer BatchNormInternal BatchNormalizationGrad ConcatTraining ConvGrad ConvTransposeGrad DivGrad
    FastGelu FastGeluGrad FusedMatMul GRUGrad GRUTraining GatherElementsGrad GatherGrad GatherNDGrad Gelu
    GeluGrad InPlaceAccumulatorV2 LSTMGrad LSTMTraining LayerNormalizationGrad LeakyReluGrad LogSoftmaxGrad
    LogSoftmaxGrad_13 PadAndUnflatten QuickGelu QuickGeluGrad ReduceSumTraining ReluGrad ResizeGrad Scale
    SigmoidGrad SliceGrad SoftmaxCrossEntropyLossGrad SoftmaxCrossEntropyLossInternal
    SoftmaxCrossEntropyLossInternalGrad SoftmaxGrad SoftmaxGrad_13 SplitTraining TanhGrad Trilu
    """.split()
)
