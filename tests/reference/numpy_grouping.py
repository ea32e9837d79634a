"""Chains of examples that are alike, in plain loops: what the package's are held against."""


def chain(similarity, first, ranks):
    """The numbers of all examples, from `first` on.

    At every other place the picture looks for a text among those that are unused, at the others the text for a picture;
    taken is the candidate of the given rank, 1 the likest, equal ones by their numbers; the last where there are fewer.
    """
    visited, by_picture = [first], True
    while len(visited) < len(similarity):
        current = visited[-1]
        value = lambda other: similarity[current][other] if by_picture else similarity[other][current]  # noqa: B023, E731
        candidates = sorted((n for n in range(len(similarity)) if n not in visited), key=lambda n: (-value(n), n))
        rank = ranks[len(visited)]
        visited.append(candidates[min(rank, len(candidates)) - 1])
        by_picture = not by_picture
    return visited
