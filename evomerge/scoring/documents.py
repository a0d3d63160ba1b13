"""Which documents a search may look at, and which are held out for the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.errors import UserError
from evomerge.seeding import document_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Numbers of a task's documents, each side in its fixed shuffled order."""

    search: tuple[int, ...]
    holdout: tuple[int, ...]


def split_documents(
    *, task: str, texts: Sequence[str], seed: int, holdout_share: float, limit: int | None = None
) -> Split:
    """Splits a task's documents into search and holdout by a hash of their texts.

    texts: one per document; a document's number is its place in it. limit: how many documents
    are used at most, both sides together; None: all. The holdout gets its share of the used
    documents, rounded, and both sides at least one. Documents of equal text always stand on the
    same side, for which the holdout grows or shrinks as little as possible. The result depends
    on nothing but the arguments, and the order of each side on nothing but seed, task and texts.

    Raises UserError where the share is not inside (0, 1), or the documents are too few.
    """
    if not 0 < holdout_share < 1:
        raise UserError(
            f"task {task!r}: holdout_share is {holdout_share}; expected a number between 0 and 1, "
            "such as 0.5"
        )
    ranks = [document_rank(seed, task, text) for text in texts]
    order = sorted(range(len(texts)), key=lambda number: (ranks[number], number))[:limit]
    # The only places to cut are those between different texts.
    cuts = [i for i in range(1, len(order)) if ranks[order[i - 1]] != ranks[order[i]]]
    if not cuts:
        different = len({ranks[number] for number in order})
        raise UserError(
            f"task {task!r}: {different} different documents to use (of {len(texts)} in the task, "
            f"limit {limit}); expected at least 2, one to search on and one to hold out; "
            "give the task more documents or raise the limit"
        )
    aim = len(order) - round(holdout_share * len(order))
    cut = min(cuts, key=lambda place: (abs(place - aim), place))
    return Split(search=tuple(order[:cut]), holdout=tuple(order[cut:]))


def stratified_blocks(
    documents: Mapping[str, Sequence[int]], count: int
) -> tuple[dict[str, tuple[int, ...]], ...]:
    """Cuts each task's documents, in their order, into `count` parts as equal as can be.

    Block k holds the k-th part of every task, so that the first blocks together are a stratified
    sample of all documents wherever their order is a random one, as that of a Split is. A task of
    fewer documents than blocks is missing in some; a block without any document is left out.
    """
    blocks = []
    for number in range(count):
        parts = {
            task: tuple(
                numbers[len(numbers) * number // count : len(numbers) * (number + 1) // count]
            )
            for task, numbers in documents.items()
        }
        blocks.append({task: part for task, part in parts.items() if part})
    return tuple(block for block in blocks if block)
