"""Where and with what a search ran, as each of its starts records it."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_PACKAGES = ("evomerge", "torch", "transformers", "lm_eval", "optuna", "safetensors")


def environment() -> dict[str, Any]:
    """Time, host, versions of packages, and the git revision of evomerge."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "git": git_revision(),
    }


def git_revision() -> str | None:
    """Commit of the checkout that evomerge runs from (`-dirty` if changed); None if it is none."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
