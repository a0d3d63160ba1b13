"""What is called what in mergekit's merge YAML and here, and where its defaults are others."""

from typing import Any

NAMES = {"ramplus_tl": "ramplus"}
"""Methods by another name; mergekit's first."""

REFUSED = {
    "multislerp": "its log map leaves out θ / sin θ, so the result would differ",
    "arcee_fusion": "there is no such method here; nearswap and ties are the nearest",
}
"""Methods that cannot be read, and why."""

WITHOUT_BASE = ("linear", "slerp", "nuslerp", "karcher", "passthrough")
"""Methods whose base, where it is among the models, is one like the others."""

BASE_JOINS = ("linear", "slerp", "karcher")
"""Methods in which `base_model` is one more of the `models` where they do not list it."""

REQUIRED = ("weight", "t")
"""Parameters that have no default there."""

PER_MODEL = {"passthrough": ("scale",)}
"""Parameters that hang on a model there, and on the whole rule here."""

_DELTAS = ("weight", "density", "lambda", "normalize", "rescale")
PARAMETERS: dict[str, tuple[str, ...]] = {
    "linear": ("weight", "normalize"),
    "slerp": ("t",),
    "nuslerp": ("weight", "nuslerp_flatten", "nuslerp_row_wise"),
    "karcher": ("max_iter", "tol"),
    "model_stock": ("filter_wise",),
    "task_arithmetic": ("weight", "lambda", "normalize"),
    "ties": _DELTAS,
    "dare_linear": _DELTAS,
    "dare_ties": _DELTAS,
    "della": (*_DELTAS, "epsilon"),
    "della_linear": (*_DELTAS, "epsilon"),
    "breadcrumbs": (*_DELTAS, "gamma"),
    "breadcrumbs_ties": (*_DELTAS, "gamma"),
    "sce": ("select_topk",),
    "ram": ("epsilon",),
    "ramplus": ("epsilon", "r", "alpha"),
    "nearswap": ("t",),
    "passthrough": ("scale",),
}
"""Parameters that change something there, by our name of the method; it ignores all others."""

IGNORED = ("int8_mask", "normalize_weights", "eps")
"""Parameters that we ignore too: precision, and those of methods that cannot be read."""

DEFAULTS: dict[str, dict[str, Any]] = {
    **{name: {"density": 1.0} for name, known in PARAMETERS.items() if "density" in known},
    "della": {"density": 1.0, "normalize": True},
}
"""Where its defaults are not ours."""

FLAGS = ("task_vectors", "by_row", "by_column")
"""Parameters that are told by other means there."""

RESCALED = ("dare_linear", "dare_ties", "della", "della_linear")
"""Methods that divide by the density unless `rescale` is false; others rescale only on demand."""

SUMS = ("task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")
"""Methods in which `normalize` divides by the sum of the weights there, and has no word here."""

ELECTIONS = ("ties", "dare_ties", "della", "breadcrumbs_ties")
"""Methods that elect signs: `normalize` divides by Σ p there, and by Σ |p| here."""

TOP = (
    *("merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype"),
    *("out_dtype", "tokenizer_source", "tokenizer", "chat_template", "name"),
)
"""Keys of a merge."""

SAME_RESULT = (
    *("linear", "slerp", "nuslerp", "karcher", "model_stock", "task_arithmetic", "ties"),
    *("breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ramplus", "nearswap", "passthrough"),
)
"""Methods that make equal tensors in both (the others draw random masks of their own)."""
