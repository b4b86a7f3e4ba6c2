"""Engines side by side on the page: those of the machine, precisions, with and without the plugin, baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gmf_edge.report.figures import bar, decisive, figure, milliseconds, percent, signed_points

Report = Mapping[str, Any]


def engines(report: Report, bench: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Engines that came into question, the precision that was not delivered, and baselines: side by side, each with its parity."""
    tables = [table for table in (_choice(report), _precisions(report), _plugin(report), *_baselines(bench)) if table is not None]
    return {"tables": tables} if tables else None


def _choice(report: Report) -> dict[str, Any] | None:
    choice = report.get("choice")
    if not choice:
        return None
    rows = [
        _row(
            name,
            row["version"] or "",
            row["reason"],
            row["right"],
            row["median_ms"],
            "delivered" if name == choice["delivered"] else "",
        )
        for name, row in choice["engines"].items()
    ]
    return _table("Engines of this machine", choice["reason"], rows, "in turn, at the batch size that the engine is tuned for")


def _precisions(report: Report) -> dict[str, Any] | None:
    other, decision = report.get("alternative"), report.get("comparison")
    if not other or not decision:
        return None
    rows = []
    for side, role in ((report, "delivered"), (other, "not delivered")):
        timed = next(iter(side["latency"].values()), None)
        words = _parity_words(side["parity"])
        median = None if timed is None else decisive(timed)["median_ms"]
        rows.append(_row(side["precision"].upper(), words, side["reason"], side["passed"], median, role))
    # the delivered side's own verdict is in the comparison's reason already
    rows[0]["words"] = ""
    return _table("Precisions", decision["reason"], rows, "each by itself, at the smallest batch size")


def _plugin(report: Report) -> dict[str, Any] | None:
    plugin = report.get("plugin")
    if not plugin:
        return None
    rows = []
    for batch, timed in (plugin.get("batches") or {}).items():
        for name, key in (("with the plugin", "candidate_ms"), ("without", "baseline_ms")):
            rows.append(_row(name, f"batch {batch}", "", True, timed.get(key), ""))
    return _table("With and without the plugin", plugin["reason"], rows, "in turn")


def _baselines(bench: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    found = (bench or {}).get("baselines")
    if not found:
        return []
    tables = []
    for batch, timed in found["batches"].items():
        rows = []
        for name, part in timed["engines"].items():
            engine = found["engines"][name]
            accuracy = engine["accuracy"]
            words = _parity_words(accuracy)
            ratio = (
                f"{part['ratio']:.2f} times ours ({part['ratio_low']:.2f} to {part['ratio_high']:.2f})"
                if part["ratio"] != 1
                else ""
            )
            rows.append(
                _row(
                    name,
                    f"{engine['backend']} {engine['version']}, {words}",
                    engine["reason"],
                    engine["within_gate"],
                    part["times"]["median_ms"],
                    ratio,
                )
            )
        reason = "; ".join(f"{name} was not run: {why}" for name, why in found["not_run"].items())
        tables.append(
            _table(
                f"Baselines at batch {batch}",
                reason,
                rows,
                f"{timed['measure']}, {timed['rounds']} rounds in turn; quartiles of the ratio in brackets",
            )
        )
    return tables


def _parity_words(parity: Mapping[str, Any]) -> str:
    """How right an engine is, in a few words."""
    if parity.get("top1_change_points") is not None:
        return f"top-1 {signed_points(parity['top1_change_points'])} points"
    if parity.get("agreement") is not None:
        return f"agreement {percent(parity['agreement'])}"
    return f"relative L2 error {figure(parity.get('relative_l2'))}"


def _row(name: str, detail: str, words: str, right: bool, median_ms: float | None, role: str) -> dict[str, Any]:
    return {"name": name, "detail": detail, "words": words, "right": right, "median_ms": median_ms, "role": role}


def _table(title: str, reason: str, rows: list[dict[str, Any]], how: str) -> dict[str, Any]:
    longest = max((row["median_ms"] or 0.0 for row in rows), default=0.0)
    for row in rows:
        row["time"] = milliseconds(row["median_ms"])
        row["share"] = bar(row["median_ms"], longest)
    return {"title": title, "reason": reason, "rows": rows, "how": how}
