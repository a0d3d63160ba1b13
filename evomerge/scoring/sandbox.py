"""lm-eval's templates, rendered where they cannot reach Python's insides.

lm-eval renders `doc_to_text` and the like in a plain Jinja environment, in which a template can
walk from any value to every class of the program, and so run code.
"""

from typing import Any, ClassVar

import lm_eval.utils
from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import SandboxedEnvironment

_LARGEST = 1_000_000  # characters, or members of a list


class _Sandbox(SandboxedEnvironment):
    """Templates without a way to Python's insides, or to texts and numbers of any size."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"*", "**"})  # type: ignore[misc]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """SecurityError for a product that would be large."""
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                long = hasattr(one, "__len__") and isinstance(other, int)
                if long and len(one) * other > _LARGEST:
                    raise SecurityError(f"a template repeats something {other} times")
        elif not abs(right) <= 64 or not abs(left) <= 1e6:
            raise SecurityError(f"a template takes {left} to the power of {right}")
        return super().call_binop(context, operator, left, right)


def use_sandbox() -> None:
    """Has lm-eval render its templates in a sandbox from now on, whoever wrote them."""
    if not isinstance(lm_eval.utils.env, SandboxedEnvironment):
        sandbox = _Sandbox(undefined=StrictUndefined, keep_trailing_newline=True)
        sandbox.filters["regex_replace"] = lm_eval.utils.regex_replace
        lm_eval.utils.env = sandbox
