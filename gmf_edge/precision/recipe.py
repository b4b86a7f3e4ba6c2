"""What is quantised to INT8 and how: one frozen row of options, read from TOML or from RECIPES.

The TOML files in calibration/recipes/ are RECIPES with every option explained, to be copied and changed; a test holds the two
together. A file may leave options out: each then has its default, which is `balanced`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from gmf_edge.errors import EnvironmentProblem, SpecError

METHODS = ("minmax", "entropy", "percentile", "mse")
SUFFIX = ".toml"
# of a path that names a file that is longer than any recipe
MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True)
class Recipe:
    """Which layers are quantised, how their ranges are chosen, and what is done to help them.

    Attributes:
        method: how an activation's range is chosen from its values on the calibration images: one of METHODS.
        percentile: share of the values inside the range, in percent, for the method of that name.
        qkv, proj, mlp: the attention's two Linears, and the MLP's two. proj costs more accuracy than all others together.
        dense_convolutions: the stem's second and the patch embeddings' pointwise convolutions.
        first_convolution: the stem's first, which reads the picture.
        depthwise: CPE's and the patch embeddings' depthwise convolutions.
        residual_adds: the skip input of the residual additions.
        head: the classifier.
        min_features: a Linear with fewer inputs or outputs than this stays as it is: it would gain nothing.
        smoothing: exponent in 0..1 of the activation smoothing between a LayerNorm and its Linear; 0 leaves it out.
        proj_smoothing: the same between attention and proj, at the price of one Mul a block.
        bias_correction: whether biases take up the mean error that rounding the weights leaves.
        keep: patterns (fnmatch) of layer names that are never quantised.

    Raises:
        SpecError: a value that no recipe can have.
    """

    method: str = "mse"
    percentile: float = 99.99
    qkv: bool = True
    proj: bool = False
    mlp: bool = True
    dense_convolutions: bool = False
    first_convolution: bool = False
    depthwise: bool = False
    residual_adds: bool = False
    head: bool = False
    min_features: int = 16
    smoothing: float = 0.0
    proj_smoothing: float = 0.0
    bias_correction: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SpecError(f"calibration method {self.method!r} is not known", f"use one of {', '.join(METHODS)}")
        # written so that NaN is refused too
        if not 50 < self.percentile <= 100:
            raise SpecError(f"percentile is {self.percentile}", "give percent above 50 and at most 100, such as 99.99")
        for name in ("smoothing", "proj_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"{name} is {getattr(self, name)}", "give an exponent between 0 (off) and 1, such as 0.5")
        if self.min_features < 1:
            raise SpecError(f"min_features is {self.min_features}", "give at least 1")

    def keeps(self, layer: str) -> bool:
        """Whether a pattern of `keep` matches the layer's name."""
        return any(fnmatch.fnmatchcase(layer, pattern) for pattern in self.keep)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a manifest."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @property
    def sha256(self) -> str:
        """Digest of all options."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_options(cls, options: dict[str, Any], source: str = "the recipe") -> Recipe:
        """A recipe of these options and defaults for the rest.

        Args:
            options: by the names of the attributes.
            source: what error messages call it.

        Raises:
            SpecError: an unknown option, or a value of the wrong type or out of range.
        """
        types = {field.name: type(field.default) for field in fields(cls)}
        checked: dict[str, Any] = {}
        for name, value in options.items():
            if name not in types:
                raise SpecError(f"{source} has the unknown option {name!r}", f"the options are {', '.join(types)}")
            checked[name] = _typed(value, types[name], f"{source}: {name}")
        try:
            return cls(**checked)
        except SpecError as error:
            raise SpecError(f"{source}: {error.problem}", error.remedy) from error


RECIPES: dict[str, Recipe] = {
    "balanced": Recipe(),
    "fastest": replace(Recipe(), proj=True),
    "accurate": replace(Recipe(), smoothing=0.5),
}


def open_recipe(name_or_file: str | Path) -> Recipe:
    """A recipe of RECIPES by name, or of a TOML file.

    Raises:
        SpecError: neither a known name nor a readable file, not TOML, or an option that no recipe has.
        EnvironmentProblem: Python 3.10 without the package tomli.
    """
    known = RECIPES.get(str(name_or_file))
    if known is not None:
        return known
    path = Path(name_or_file)
    if path.suffix != SUFFIX:
        raise SpecError(
            f"recipe {str(name_or_file)!r} is not known", f"give --recipe one of {', '.join(RECIPES)}, or a {SUFFIX} file"
        )
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise SpecError(f"{path} is not a regular file", "name a recipe file, such as one of calibration/recipes/")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SpecError(f"{path} is too large for a recipe", "name a recipe file, such as one of calibration/recipes/")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"recipe {path} cannot be read ({error})", "name a recipe file, such as one of calibration/recipes/"
        ) from error
    return Recipe.from_options(_toml(text, path), str(path))


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[no-redef,import-not-found,unused-ignore]
        except ImportError as error:
            raise EnvironmentProblem(f"reading {path} on Python 3.10 needs the package tomli", "pip install tomli") from error
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SpecError(f"recipe {path} is not TOML ({error})", "compare it with calibration/recipes/balanced.toml") from error


def _typed(value: Any, kind: type, place: str) -> Any:
    """The value as an option of that type; bool is no number here, and an integer is a float where one is wanted."""
    if kind is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list of texts"}
    raise SpecError(f"{place} is {value!r}", f"give {words[kind]}")
