"""A whole model as one ONNX file: preprocessing, encoders, heads, calibration, decoding.

The graph is that of the functions that :class:`geopak.GeopakPredictor` calls. Outside it stay the
decoding of image files, turning them upright and making RGB of other colours.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geopak import __version__
from geopak.calibration import answer_score, calibrated, calibrated_confidence
from geopak.conformal import cells_within, mass_before
from geopak.errors import ExportError
from geopak.exporting.square import square_of
from geopak.models.decode import decode, joint_log_prob
from geopak.schema.model import CROP, SQUEEZE
from geopak.schema.training import DecodingOptions
from geopak.trained import Trained

log = logging.getLogger(__name__)

OPSET = 18
METADATA = "geopak"
INPUT = "image"
_OUTPUTS = (
    "latlon_deg",
    "confidence",
    "answer_score",
    "province_probability",
    "hypothesis_cell_id",
    "hypothesis_latlon_deg",
    "hypothesis_probability",
    "gate",
)
_REGION_OUTPUTS = ("cell_in_region", "region_area_km2")
# The modules whose numbers a smaller precision is for; a coordinate needs all of its digits.
_ENCODERS = ("semantic", "scene")
# Numbers of a tensor from which on its size matters.
_LEAST_HALVED = 256
_LONGEST_REASON = 300
_FRAMED = {
    CROP: "the middle square is cut out and resized within",
    SQUEEZE: "the whole is squeezed into a square within",
}


class PhotoToPlace(nn.Module):
    """A trained model from pixels to answers, as :meth:`forward` says.

    Args:
        trained: the model with its calibration, on the CPU.
        decoding: rule and numbers.
        coverage: of the regions; ``None``, or without a calibration: none.
        per_province: keep their promise per province.
    """

    cell_threshold: Tensor
    cell_area_km2: Tensor

    def __init__(
        self,
        trained: Trained,
        decoding: DecodingOptions,
        coverage: float | None,
        per_province: bool,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(trained.model).cpu().eval()
        self.model.requires_grad_(False)
        self.decoding = decoding
        self.calibration = trained.calibration
        self.has_regions = coverage is not None and self.calibration is not None
        if coverage is not None and self.calibration is not None:
            scores, num_cells = self.calibration.scores, trained.cells.num_cells
            if per_province:
                per = scores.threshold_per_province(coverage, trained.region.num_provinces)
                threshold = torch.from_numpy(per)[trained.cells.province_id]
            else:
                threshold = torch.full((num_cells,), scores.threshold(coverage)).double()
            self.register_buffer("cell_threshold", threshold)
            self.register_buffer("cell_area_km2", torch.from_numpy(self.calibration.cell_area_km2))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        return _OUTPUTS + (_REGION_OUTPUTS if self.has_regions else ())

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Answers for photos of one size.

        Args:
            image: (B, H, W, 3) uint8, upright, RGB.

        Returns:
            :attr:`outputs`: ``latlon_deg`` (B, 2), ``confidence`` (B,), ``answer_score`` (B,),
            ``province_probability`` (B, P), ``hypothesis_cell_id`` (B, K) int64,
            ``hypothesis_latlon_deg`` (B, K, 2), ``hypothesis_probability`` (B, K), ``gate`` (B,),
            and with regions ``cell_in_region`` (B, N) bool and ``region_area_km2`` (B,).
        """
        model, calibration, rule = self.model, self.calibration, self.decoding.rule
        square = square_of(image, model.image_size, model.framing) / 255
        output = model.heads(model.embed(square, model.fused_encoders))
        if calibration is not None:
            output = calibrated(output, calibration)
        decoded = decode(model, output, self.decoding)[rule]
        confidence = decoded.confidence
        if calibration is not None:
            distance = self.decoding.confidence_km
            confidence = calibrated_confidence(confidence, calibration, rule, distance)
        answers: tuple[Tensor, ...] = (
            decoded.latlon_deg,
            confidence,
            answer_score(output, confidence, calibration),
            output.province_logits.softmax(-1),
            decoded.cell_id,
            decoded.hypothesis_latlon_deg,
            decoded.probability,
            output.gate,
        )
        if self.has_regions:
            joint = joint_log_prob(output, model.cell_province_id).exp()
            inside = cells_within(mass_before(joint), self.cell_threshold)
            answers += (inside, (inside.double() * self.cell_area_km2).sum(-1).float())
        return answers


def write_onnx(
    trained: Trained,
    path: Path,
    decoding: DecodingOptions,
    coverage: float | None,
    per_province: bool,
    precision: str,
) -> PhotoToPlace:
    """Writes the ONNX file.

    Args:
        trained: the model.
        path: to write; replaced.
        decoding, coverage, per_province: see :class:`PhotoToPlace`.
        precision: ``float32``; ``float16``: half the file, for the encoders' weights are kept so
            and computed with in float32 (ONNX Runtime's CPU kernels for sums in float16 end its
            process with this graph); ``int8``: the encoders' matrix products without a bias of
            their own, with weights of one byte and activations scaled as they come; all else,
            convolutions among it, stays at float32.

    Returns:
        What was written, before any quantisation.

    Raises:
        ExportError: ONNX's libraries are missing, or cannot write the file.
    """
    require_onnx()
    import onnx

    module = PhotoToPlace(trained, decoding, coverage, per_province).eval()
    # Neither a batch nor a side of 1, which an exporter takes for a constant.
    size = trained.model.image_size
    example = torch.zeros(2, size + 4, size + 6, 3, dtype=torch.uint8)
    dynamic = {0: "batch", 1: "height", 2: "width"}
    proto = traced_graph(module, example, INPUT, module.outputs, dynamic)
    if precision == "float16":
        _halve(proto)
    elif precision == "int8":
        proto = _quantised(proto)
    entry = proto.metadata_props.add()
    entry.key, entry.value = (
        METADATA,
        json.dumps(_description(trained, module, precision, coverage, per_province)),
    )
    try:
        onnx.save(proto, path)
    except (OSError, ValueError) as error:
        raise ExportError(f"Cannot write {path}: {str(error).partition(chr(10))[0]}") from error
    return module


def traced_graph(
    module: nn.Module,
    example: Tensor,
    input_name: str,
    outputs: Sequence[str],
    dynamic: Mapping[int, str],
) -> Any:
    """The ONNX model of a module of one input.

    Args:
        module: in eval mode.
        example: input; no dynamic axis of length 0 or 1, which would be taken for a constant.
        input_name, outputs: names in the model.
        dynamic: axis of the input -> name of its length, which is free.

    Returns:
        An ``onnx.ModelProto``.

    Raises:
        ExportError: PyTorch cannot export the module; with its reason.
    """
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=list(outputs),
                dynamic_shapes=(dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),),
                custom_translation_table=_translations(),
                verbose=False,
                optimize=False,
            )
            assert program is not None
            _keep_small_terms(program.model)
            program.optimize()
            # Of outputs that are equal the optimiser keeps one name.
            for value, name in zip(program.model.graph.outputs, outputs, strict=True):
                value.name = name
    except torch.onnx.errors.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split())[:_LONGEST_REASON]
        raise ExportError(
            f"PyTorch {torch.__version__} cannot export this model to ONNX: {reason}. "
            "format=safetensors takes any model."
        ) from error
    proto = program.model_proto
    for axis, name in dynamic.items():
        _rename_dimension(proto, input_name, axis, name)
    return proto


def _keep_small_terms(model: Any) -> None:
    """Writes ``x + constant`` as a ``Sum`` of both, as far as it is of floats.

    The exporter's optimiser takes constants below 1e-8 for 0 and drops their ``Add``: those that
    keep a root or a quotient finite at 0 are smaller.
    """
    import onnx_ir as ir

    floats = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    for node in model.graph:
        made_by = [value.producer() for value in node.inputs if value is not None]
        constant = any(other is not None and other.op_type == "Constant" for other in made_by)
        if node.op_type == "Add" and constant and node.inputs[0].dtype in floats:
            node.op_type = "Sum"


def require_onnx() -> None:
    """Makes sure that ONNX's libraries are there.

    Raises:
        ExportError: one is missing.
    """
    from importlib.util import find_spec

    names = ("onnx", "onnxscript", "onnxruntime")
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ExportError(
            f"format=onnx needs {', '.join(missing)}. Install it: pip install 'geopak[export]'"
        )


def _rename_dimension(proto: Any, input_name: str, axis: int, name: str) -> None:
    """Gives a free dimension of the input a name that says what it is, wherever it occurs."""
    (given,) = [value for value in proto.graph.input if value.name == input_name]
    before = given.type.tensor_type.shape.dim[axis].dim_param
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if before and dim.dim_param == before:
                dim.dim_param = name


def _description(
    trained: Trained,
    module: PhotoToPlace,
    precision: str,
    coverage: float | None,
    per_province: bool,
) -> dict[str, Any]:
    """What the numbers of the outputs mean, kept in the file's metadata."""
    cells, names = trained.cells, trained.region.names
    return {
        "version": __version__,
        "model": trained.config["model"]["name"],
        "region": trained.region.title,
        "phase": trained.phase["index"],
        "input": "image: (batch, height, width, 3) uint8, upright RGB pixels of any size; "
        f"{_FRAMED[module.model.framing]}. Decoding files, EXIF orientation and other colours are "
        "left to the caller.",
        "image_size": module.model.image_size,
        "framing": module.model.framing,
        "precision": precision,
        "rule": module.decoding.rule,
        "confidence_km": module.decoding.confidence_km,
        "calibrated": module.calibration is not None,
        "coverage": coverage if module.has_regions else None,
        "per_province": per_province,
        "provinces": list(names),
        "cells": {
            "province_id": cells.province_id.tolist(),
            "latitude": cells.center_latlon_deg[:, 0].tolist(),
            "longitude": cells.center_latlon_deg[:, 1].tolist(),
            "radius_km": cells.radius_km.tolist(),
        },
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's remarks on its own progress from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Operations that ONNX Runtime lacks for float64, or the exporter altogether, by others."""
    import onnx_ir as ir
    from onnxscript import opset18

    # Symbolic values, not those that its signatures speak of.
    op: Any = opset18

    def of(value: Any, like: Any) -> Any:
        return op.CastLike(op.Constant(value_float=value), like)

    def refined(angle: Any, y: Any, x: Any) -> Any:
        """A float32 angle of the point (x, y), corrected to float64: its rest is a small angle."""
        start = op.Cast(angle, to=ir.DataType.DOUBLE)
        sine, cosine = op.Sin(start), op.Cos(start)
        rest = op.Div(
            op.Sub(op.Mul(y, cosine), op.Mul(x, sine)), op.Add(op.Mul(x, cosine), op.Mul(y, sine))
        )
        third = op.Div(op.Mul(rest, op.Mul(rest, rest)), of(3.0, rest))
        return op.Add(start, op.Sub(rest, third))

    def acos(self: Any) -> Any:
        if self.dtype != ir.DataType.DOUBLE:
            return op.Acos(self)
        one = of(1.0, self)
        y = op.Sqrt(op.Mul(op.Sub(one, self), op.Add(one, self)))
        return refined(op.Acos(op.Cast(self, to=ir.DataType.FLOAT)), y, self)

    def atan2(self: Any, other: Any) -> Any:
        is_double = ir.DataType.DOUBLE in (self.dtype, other.dtype)
        y, x = (
            (op.Cast(v, to=ir.DataType.FLOAT) for v in (self, other))
            if is_double
            else (self, other)
        )
        zero, half_turn = op.Constant(value_float=0.0), op.Constant(value_float=3.14159265358979)
        turn = op.Where(op.Less(y, zero), op.Neg(half_turn), half_turn)
        angle = op.Add(op.Atan(op.Div(y, x)), op.Where(op.Less(x, zero), turn, zero))
        # 0/0: as PyTorch has it. NaN stays.
        nowhere = op.And(op.Equal(y, zero), op.Equal(x, zero))
        angle = op.Where(nowhere, zero, angle)
        return refined(angle, self, other) if is_double else angle

    def stable_sort(
        self: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False
    ) -> Any:
        # TopK takes the lower index first of equal values.
        length = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, length, axis=dim, largest=int(descending), sorted=1)

    def searchsorted(sorted_sequence: Any, self: Any, **options: Any) -> Any:
        smaller = op.Less(sorted_sequence, op.Unsqueeze(self, op.Constant(value_ints=[-1])))
        axis = op.Constant(value_ints=[-1])
        return op.ReduceSum(op.Cast(smaller, to=ir.DataType.INT64), axis, keepdims=0)

    def hypot(self: Any, other: Any) -> Any:
        # As in PyTorch, a square that overflows is none of the result.
        large = op.Max(op.Abs(self), op.Abs(other))
        safe = op.Where(op.Equal(large, of(0.0, large)), of(1.0, large), large)
        a, b = op.Div(self, safe), op.Div(other, safe)
        return op.Mul(large, op.Sqrt(op.Add(op.Mul(a, a), op.Mul(b, b))))

    aten = torch.ops.aten
    return {
        aten.hypot.default: hypot,
        torch.ops.prims.hypot.default: hypot,
        aten.acos.default: acos,
        aten.atan2.default: atan2,
        aten.sort.stable: stable_sort,
        aten.searchsorted.Tensor: searchsorted,
    }


def _encoder_nodes(proto: Any) -> list[Any]:
    """The nodes that encoders consist of, with those before them, which have no weights.

    Folded weights have no names of their own, so nodes are found by the others: those with an
    encoder's parameter, and whatever leads to them. The last of an encoder always has one.
    """
    parameters = tuple(f"model.{encoder}." for encoder in _ENCODERS)
    producer = {name: node for node in proto.graph.node for name in node.output}
    waiting = [
        node for node in proto.graph.node if any(name.startswith(parameters) for name in node.input)
    ]
    found = {}
    while waiting:
        node = waiting.pop()
        if node.output[0] not in found:
            found[node.output[0]] = node
            waiting += [producer[name] for name in node.input if name in producer]
    return list(found.values())


def _halve(proto: Any) -> None:
    """Keeps the encoders' weights in float16, each cast to float32 where it is used."""
    import numpy as np
    import onnx

    used = {name for node in _encoder_nodes(proto) for name in node.input}
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.name not in used or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.size < _LEAST_HALVED:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ExportError(
                f"precision=float16: {tensor.name} holds {np.abs(values).max():.3g}, more than "
                "float16 can. Use precision=float32."
            )
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_cast", to=1))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _quantised(proto: Any) -> Any:
    """The graph with the encoders' matrix products in int8."""
    import tempfile

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weights = {tensor.name for tensor in proto.graph.initializer}
    names = [
        node.name
        for node in _encoder_nodes(proto)
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]
    if not names:
        raise ExportError("precision=int8: this model's encoders have no matrix products.")
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        onnx.save(proto, before)
        with _quiet():
            quantize_dynamic(
                before, after, nodes_to_quantize=names, weight_type=QuantType.QInt8,
                per_channel=True, op_types_to_quantize=["MatMul", "Gemm"],
            )  # fmt: skip
        return onnx.load(after)
