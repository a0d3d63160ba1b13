"""Keys and seeds: everything random follows from a seed and names, never from a global state."""

import hashlib


def _digest(*words: object) -> bytes:
    text = "\x1f".join(str(word) for word in words)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def mask_key(seed: int, tensor: str, source: str) -> int:
    """62-bit key of one random mask: the same in the search and in the export.

    Two independent 31-bit halves, so that arithmetic on either stays inside a signed 64-bit
    integer on every device.
    """
    return int.from_bytes(_digest("mask", seed, tensor, source), "little") >> 2


def sampler_seed(seed: int, trial: int) -> int:
    """32-bit seed of what is proposed for the trial of this number, in whichever process."""
    return int.from_bytes(_digest("sampler", seed, trial)[:4], "little")


def document_rank(seed: int, task: str, document: str) -> int:
    """64-bit rank of a document in its task's fixed shuffled order; equal texts rank equally."""
    return int.from_bytes(_digest("document", seed, task, document), "little")
