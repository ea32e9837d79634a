"""Scores of true and false captions as the benchmarks define them, case by case.

SugarCrepe's program counts a case where the score of the true caption is larger; Winoground's paper defines its three
scores by the four scores of an item, s[caption][picture].
"""


def accuracy(scores):
    """Percent; of each case (score of the true caption, scores of the false ones)."""
    right = 0
    for true, *false in scores:
        right += 1 if all(true > other for other in false) else 0
    return 100 * right / len(scores)


def winoground(items):
    """(text, image, group) in percent; of each item [[s00, s01], [s10, s11]], captions by pictures."""
    text = image = group = 0
    for s in items:
        f = s[0][0] > s[1][0] and s[1][1] > s[0][1]
        g = s[0][0] > s[0][1] and s[1][1] > s[1][0]
        text, image, group = text + f, image + g, group + (f and g)
    return tuple(100 * count / len(items) for count in (text, image, group))
