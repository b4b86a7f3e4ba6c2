"""How predictions are printed: a block a picture, or a line a picture where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from gmf_edge.cli.screen import out, show_table

if TYPE_CHECKING:
    from gmf_edge.deploy import Prediction

MOST_CLASSES = 5


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """Plain values: image, classes with name, probability and, where it has one, WordNet id; or image and error."""
    if prediction.problem is not None:
        return {"image": prediction.image, "classes": [], "error": prediction.problem}
    classes: list[dict[str, Any]] = [{"name": name, "probability": share} for name, share in prediction.classes]
    for entry, wordnet_id in zip(classes, prediction.ids, strict=False):
        entry["wordnet_id"] = wordnet_id
    return {"image": prediction.image, "classes": classes}


def show_predictions(predictions: Sequence[Prediction], top: int | None) -> None:
    """Print them.

    Args:
        predictions: one a picture.
        top: how many classes of each were asked for; None where nobody asked: then several pictures get a line each.
    """
    if top is None and len(predictions) > 1:
        table = Table(
            "picture", "class", "%", *(["WordNet id"] if any(found.ids for found in predictions) else []), box=None, pad_edge=False
        )
        table.columns[0].overflow = table.columns[1].overflow = "fold"
        table.columns[2].justify, table.columns[2].no_wrap = "right", True
        for found in predictions:
            name, share = found.classes[0] if found.classes else (f"not read: {found.problem}", None)
            table.add_row(_escaped(found.image), _escaped(name), "" if share is None else f"{100 * share:.2f}", *found.ids[:1])
        show_table(table)
        return
    for found in predictions:
        out.print(found.image, markup=False)
        if found.problem is not None:
            out.print(f"  not read: {found.problem}", markup=False)
        for rank, (name, share) in enumerate(found.classes):
            wordnet_id = f"  ({found.ids[rank]})" if found.ids else ""
            out.print(f"  {100 * share:6.2f} %  {name}{wordnet_id}", markup=False)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
