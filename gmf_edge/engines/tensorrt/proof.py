"""Does an engine run what was asked for? Proved, refuted, or not told by this TensorRT.

    FP32   no layer computes in less
    FP16   the work that stayed in FP32 is at most a given share, and some is in FP16
    BF16   the same with BF16, and none is in FP16
    INT8   the layers that were quantised run in INT8, each looked for by its ONNX node; Q and DQ kernels do not count

What a version does not tell is neither a proof nor a refusal: the verdict is "unknown" and a sentence says so, and parity with FP32
PyTorch, which every build measures, is what judges the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gmf_edge.engines.tensorrt.inspect import EngineLayer, InspectedEngine, LayerTimes, times_of_layers
from gmf_edge.spec import Precision

PROVED, REFUTED, UNKNOWN = "proved", "refuted", "unknown"
# of the quantised layers; with fewer in INT8 than in anything else, INT8 is not what the engine runs
MIN_INT8_SHARE = 0.5
# of the layers with arithmetic; below it the times do not describe the engine, and layers are counted instead
MIN_TIMED_SHARE = 0.95


@dataclass(frozen=True)
class PrecisionProof:
    """What is known of an engine's precision.

    Attributes:
        verdict: PROVED, REFUTED or UNKNOWN.
        reason: one sentence with the figures.
        shares: share of the arithmetic per precision, sums to 1; "unknown" where TensorRT does not tell.
        basis: "time", or "layers" where too few were timed to go by time.
        quantised: how many layers were quantised in the graph.
        in_int8: ONNX nodes of those that run in INT8.
        not_in_int8: of those that run in another precision.
        untold: of those of which TensorRT does not tell it.
    """

    verdict: str
    reason: str
    shares: Mapping[str, float]
    basis: str
    quantised: int = 0
    in_int8: tuple[str, ...] = ()
    not_in_int8: tuple[str, ...] = ()
    untold: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know: what is not proved, and quantised layers that do not run in INT8."""
        notes = [] if self.verdict == PROVED else [f"precision {self.verdict}: {self.reason}"]
        if self.not_in_int8 and self.verdict == PROVED:
            notes.append(f"{len(self.in_int8)} of {self.quantised} quantised layers run in INT8; not {_first(self.not_in_int8)}")
        if "unknown" in self.shares:
            notes.append(f"{self.shares['unknown']:.0%} of the work is in regions whose inside this TensorRT does not tell")
        if self.basis != "time":
            notes.append("shares are by number of layers: TensorRT's profiler did not time enough of them")
        return tuple(notes)


def prove_precision(
    inspected: InspectedEngine,
    requested: Precision,
    max_fp32_share: float,
    times: LayerTimes,
    quantised_layers: Sequence[str] = (),
) -> PrecisionProof:
    """What an engine's layers say of a request.

    Args:
        inspected: the engine.
        requested: precision that was asked for.
        max_fp32_share: of the arithmetic that FP16, BF16 and INT8 may leave in FP32.
        times: of the layers, by TensorRT's profiler; empty where none was measured.
        quantised_layers: ONNX node names of the layers that were quantised, for INT8.
    """
    shares, basis = precision_shares(inspected.layers, times)
    if not shares:
        return PrecisionProof(UNKNOWN, "the engine inspector tells the precision of no layer", shares, basis)
    if requested is Precision.FP32:
        return _fp32_proof(inspected, times, shares, basis)
    in_fp32 = shares.get("fp32", 0.0)
    stayed = [layer for layer in inspected.layers if not layer.moves_data and layer.precision == "fp32"]
    untold = shares.get("unknown", 0.0)
    asked = requested.value
    if requested is not Precision.INT8 and asked not in shares and not untold:
        reason = f"{asked} was asked for, but no layer of the engine runs in {asked}: {_listed(stayed, inspected, times)}"
        return PrecisionProof(REFUTED, reason, shares, basis)
    if requested is Precision.BF16 and "fp16" in shares:
        # FP16 has not the range for which BF16 was asked
        other = [layer for layer in inspected.layers if not layer.moves_data and layer.precision == "fp16"]
        reason = f"bf16 was asked for, but {len(other)} layers run in fp16: {_listed(other, inspected, times)}"
        return PrecisionProof(REFUTED, reason, shares, basis)
    # what is not told counts for neither: only a share that is above the limit whatever the rest is refutes
    if in_fp32 > max_fp32_share:
        reason = (
            f"{requested.value} was asked for, but {in_fp32:.0%} of the work stayed in FP32 "
            f"(at most {max_fp32_share:.0%} is accepted): {_listed(stayed, inspected, times)}"
        )
        return PrecisionProof(REFUTED, reason, shares, basis)
    if requested is Precision.INT8:
        return _int8_proof(inspected, times, shares, basis, quantised_layers)
    if asked in shares and in_fp32 + untold <= max_fp32_share:
        return PrecisionProof(PROVED, f"{shares[asked]:.0%} of the work runs in {asked}, {in_fp32:.0%} in FP32", shares, basis)
    return PrecisionProof(UNKNOWN, f"TensorRT does not tell what {untold:.0%} of the work runs in", shares, basis)


def precision_shares(layers: Sequence[EngineLayer], times: LayerTimes) -> tuple[dict[str, float], str]:
    """(share of the arithmetic per precision, sums to 1; what it is a share of: "time" or "layers").

    By time where at least MIN_TIMED_SHARE of the layers with arithmetic were timed; the others were elided and count as 0. Layers that
    only move or re-type data do not count.
    """
    timed = [
        (layer, ms)
        for layer, ms in zip(layers, times_of_layers(layers, times), strict=True)
        if not layer.moves_data and layer.precision != "none"
    ]
    known = [ms for _, ms in timed if ms is not None]
    by_time = bool(timed) and len(known) >= MIN_TIMED_SHARE * len(timed) and sum(known) > 0
    total = sum(known) if by_time else float(len(timed))
    shares: dict[str, float] = {}
    for layer, ms in timed:
        shares[layer.precision] = shares.get(layer.precision, 0.0) + ((ms or 0.0) if by_time else 1.0) / total
    ordered = sorted(((name, share) for name, share in shares.items() if share > 0), key=lambda item: -item[1])
    return dict(ordered), "time" if by_time else "layers"


def _fp32_proof(inspected: InspectedEngine, times: LayerTimes, shares: dict[str, float], basis: str) -> PrecisionProof:
    # a graph with FP16 input and output starts and ends with a cast, which may be a kernel of its own
    low = [
        layer
        for layer in inspected.layers
        if not layer.moves_data
        and layer.precision not in ("fp32", "none", "unknown")
        and (layer.is_product or not set(layer.tensors) & set(inspected.io_names))
    ]
    if low:
        reason = f"FP32 was asked for, but {len(low)} layers run lower: {_listed(low, inspected, times)}"
        return PrecisionProof(REFUTED, reason, shares, basis)
    if "unknown" in shares and "fp32" not in shares:
        return PrecisionProof(UNKNOWN, "TensorRT does not tell what the work runs in", shares, basis)
    return PrecisionProof(PROVED, "no layer runs below FP32", shares, basis)


def _int8_proof(
    inspected: InspectedEngine, times: LayerTimes, shares: dict[str, float], basis: str, quantised_layers: Sequence[str]
) -> PrecisionProof:
    products = [layer for layer in inspected.layers if layer.is_product]
    if not quantised_layers:
        # a bundle that does not name its quantised layers: whether any product runs in INT8
        if any(layer.precision == "int8" for layer in products):
            return PrecisionProof(PROVED, "matrix products run in int8", shares, basis)
        # a layer without floating tensors says nothing (every engine of 10 has some), a product without them hides its own
        if any(
            layer.is_opaque or layer.precision == "unknown" or (layer.is_product and layer.precision == "none")
            for layer in inspected.layers
        ):
            return PrecisionProof(UNKNOWN, "TensorRT does not tell what its regions run in", shares, basis)
        listed = _listed(products, inspected, times)
        return PrecisionProof(
            REFUTED, f"int8 was asked for, but no matrix product of the engine runs in int8: {listed}", shares, basis
        )
    in_int8, elsewhere, untold = [], [], []
    for node in quantised_layers:
        found = {layer.precision for layer in products if layer.covers(node)} - {"none", "unknown"}
        if "int8" in found:
            in_int8.append(node)
        elif found:
            elsewhere.append(node)
        else:
            untold.append(node)
    total = len(quantised_layers)
    reason = f"{len(in_int8)} of {total} quantised layers run in INT8"
    if elsewhere:
        reason += f", {len(elsewhere)} do not ({_first(elsewhere)})"
    if untold:
        reason += f", and of {len(untold)} this TensorRT does not tell ({_first(untold)})"
    if len(in_int8) >= MIN_INT8_SHARE * total:
        verdict = PROVED
    elif len(in_int8) + len(untold) < MIN_INT8_SHARE * total:
        verdict, reason = REFUTED, f"int8 was asked for, but {reason} (at least {MIN_INT8_SHARE:.0%} must)"
    else:
        verdict = UNKNOWN
    return PrecisionProof(verdict, reason, shares, basis, total, tuple(in_int8), tuple(elsewhere), tuple(untold))


def _first(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _listed(layers: Iterable[EngineLayer], inspected: InspectedEngine, times: LayerTimes, most: int = 20) -> str:
    """The slowest first where they were timed."""
    ms_of = {id(layer): ms or 0.0 for layer, ms in zip(inspected.layers, times_of_layers(inspected.layers, times), strict=True)}
    ordered = sorted(layers, key=lambda layer: -ms_of.get(id(layer), 0.0))
    names = [f"{layer.name} ({layer.kind}, {layer.precision})" for layer in ordered[:most]]
    rest = len(ordered) - most
    return "; ".join(names) + (f"; and {rest} more" if rest > 0 else "")
