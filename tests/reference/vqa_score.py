"""The score of VQA, slowly: as its evaluation page and script describe it, word by word and person by person."""

import itertools

PUNCTUATION = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
# What is written, and what it becomes, as the official table has it; entries with capitals are never met in lower case.
CONTRACTIONS = """
aint ain't|arent aren't|cant can't|couldve could've|couldnt couldn't|couldn'tve couldn't've|couldnt've couldn't've
didnt didn't|doesnt doesn't|dont don't|hadnt hadn't|hadnt've hadn't've|hadn'tve hadn't've|hasnt hasn't|havent haven't
hed he'd|hed've he'd've|he'dve he'd've|hes he's|howd how'd|howll how'll|hows how's|isnt isn't|itd it'd|itd've it'd've
it'dve it'd've|itll it'll|let's let's|maam ma'am|mightnt mightn't|mightnt've mightn't've|mightn'tve mightn't've
mightve might've|mustnt mustn't|mustve must've|neednt needn't|notve not've|oclock o'clock|oughtnt oughtn't
ow's'at 'ow's'at|'ows'at 'ow's'at|'ow'sat 'ow's'at|shant shan't|shed've she'd've|she'dve she'd've|she's she's
shouldve should've|shouldnt shouldn't|shouldnt've shouldn't've|shouldn'tve shouldn't've|somebody'd somebodyd
somebodyd've somebody'd've|somebody'dve somebody'd've|somebodyll somebody'll|somebodys somebody's|someoned someone'd
someoned've someone'd've|someone'dve someone'd've|someonell someone'll|someones someone's|somethingd something'd
somethingd've something'd've|something'dve something'd've|somethingll something'll|thats that's|thered there'd
thered've there'd've|there'dve there'd've|therere there're|theres there's|theyd they'd|theyd've they'd've
they'dve they'd've|theyll they'll|theyre they're|theyve they've|twas 'twas|wasnt wasn't|wed've we'd've|we'dve we'd've
weve we've|werent weren't|whatll what'll|whatre what're|whats what's|whatve what've|whens when's|whered where'd
wheres where's|whereve where've|whod who'd|whod've who'd've|who'dve who'd've|wholl who'll|whos who's|whove who've
whyll why'll|whyre why're|whys why's|wont won't|wouldve would've|wouldnt wouldn't|wouldnt've wouldn't've
wouldn'tve wouldn't've|yall y'all|yall'll y'all'll|y'allll y'all'll|yall'd've y'all'd've|y'alld've y'all'd've
y'all'dve y'all'd've|youd you'd|youd've you'd've|you'dve you'd've|youll you'll|youre you're|youve you've
"""
TABLE = dict(pair.split(" ") for line in CONTRACTIONS.strip().split("\n") for pair in line.split("|"))


def normalised(answer: str) -> str:
    number_with_comma = any(
        a.isdecimal() and comma == "," and b.isdecimal()
        for a, comma, b in zip(answer, answer[1:], answer[2:], strict=False)
    )
    text = answer
    for mark in PUNCTUATION:
        beside_space = any({a, b} == {mark, " "} for a, b in itertools.pairwise(answer))
        text = "".join(("" if beside_space or number_with_comma else " ") if c == mark else c for c in text)
    kept, removed = "", 0
    for place, c in enumerate(text):
        if c == "." and removed < 32 and not text[place + 1 : place + 2].isdecimal():
            removed += 1
        else:
            kept += c
    words = []
    for word in kept.lower().split():
        word = NUMBERS.get(word, word)
        if word not in ("a", "an", "the"):
            words.append(TABLE.get(word, word))
    return " ".join(words)


def score(answer: str, given: list[str]) -> float:
    def tidy(text):
        return text.replace("\n", " ").replace("\t", " ").strip()

    answer, given = tidy(answer), [tidy(one) for one in given]
    if any(one != given[0] for one in given):
        answer, given = normalised(answer), [normalised(one) for one in given]
    accuracies = []
    for left_out in range(len(given)):
        matches = 0
        for person, one in enumerate(given):
            if person != left_out and one == answer:
                matches += 1
        accuracies.append(min(1.0, matches / 3))
    return sum(accuracies) / len(accuracies)
