"""Noise of speech: a text as a recogniser writes down what was said, without case and punctuation, with "um".

The homophones are our own list, of General American speech (where "marry" and "merry" are the same, "cot" and
"caught" are not).
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Literal

from bltkit.eval.noise.noise import Damage, Draw, pick, split

HOMOPHONES = """
ad add|ail ale|air heir|aisle isle|allowed aloud|altar alter|ant aunt|arc ark|assent ascent|ate eight|aural oral
bail bale|bald bawled|ball bawl|band banned|bard barred|bare bear|baron barren|base bass|be bee|beach beech|beat beet
been bin|beer bier|bell belle|berry bury|berth birth|bite byte|blew blue|boar bore|board bored|bolder boulder
bough bow|boy buoy|brake break|bread bred|brews bruise|bridal bridle|broach brooch|brows browse|but butt|buy by bye
cache cash|ceiling sealing|cell sell|cellar seller|cent scent sent|cereal serial|chased chaste|cheap cheep
chews choose|chord cord|choir quire|chute shoot|cite sight site|clause claws|climb clime|coarse course|colonel kernel
complement compliment|council counsel|core corps|creak creek|crews cruise|cue queue|currant current|cymbal symbol
days daze|dear deer|dense dents|desert dessert|dew do due|die dye|discreet discrete|doe dough|dual duel|ewe yew you
eye i|faint feint|fair fare|fate fete|feat feet|find fined|fir fur|flair flare|flea flee|flew flu flue|flour flower
for four|foreword forward|fort forte|forth fourth|foul fowl|frays phrase|gait gate|genes jeans|gnu knew new
gorilla guerrilla|grate great|grease greece|groan grown|guessed guest|guise guys|hail hale|hair hare|hall haul
hay hey|heal heel|hear here|heard herd|heroin heroine|hertz hurts|hi high|higher hire|him hymn|hoard horde|hoarse horse
hoes hose|hole whole|holy wholly|hour our|idle idol|in inn|its it's|jam jamb|key quay|knead need|knight night
knit nit|knot not|know no|knows nose|lain lane|lead led|leak leek|leased least|lessen lesson|levee levy|lie lye
links lynx|load lode|loan lone|loot lute|made maid|mail male|main mane|maize maze|manner manor|marry merry|meat meet
medal meddle|metal mettle|might mite|mind mined|miner minor|missed mist|moan mown|moose mousse|morning mourning
muscle mussel|mustard mustered|naval navel|nay neigh|none nun|oar or ore|ode owed|one won|paced paste|pail pale
pain pane|pair pare pear|passed past|patience patients|pause paws|pea pee|peace piece|peak peek|peal peel|pedal peddle
peer pier|plain plane|plum plumb|pole poll|poor pour pore|praise prays preys|presence presents|prince prints
principal principle|profit prophet|rack wrack|rain reign rein|raise rays|rap wrap|raw roar|read reed|real reel
red read|review revue|right rite write|ring wring|road rode rowed|role roll|root route|rose rows|rote wrote|rough ruff
rung wrung|rye wry|sail sale|scene seen|scull skull|sea see|seam seem|sear seer|seas sees seize|serf surf|sew so sow
shear sheer|shone shown|side sighed|sign sine|slay sleigh|sleight slight|sole soul|some sum|son sun|sort sought
staid stayed|stair stare|stake steak|stationary stationery|steal steel|step steppe|stile style|straight strait
suite sweet|sundae sunday|tacks tax|tail tale|taught taut|tea tee|team teem|tear tier|teas tease|tern turn
than then|their there they're|threw through|throne thrown|thyme time|tide tied|to too two|toad towed|toe tow
told tolled|trussed trust|urn earn|vain vane vein|vale veil|vary very|vice vise|wade weighed|wail whale|waist waste
wait weight|waive wave|want wont|ware wear where|warn worn|wax whacks|way weigh|we wee|weak week|weather whether
weave we've|weed we'd|weld welled|were whir|we're weir|which witch|while wile|whine wine|whirl whorl|whose who's
wood would|world whirled|yoke yolk|yore your you're
"""
"""Words that sound the same; sets are separated by bars or line ends."""

FILLERS = ("um", "uh", "er", "you know", "i mean", "like", "well", "so", "hmm", "ah", "okay", "sort of", "kind of")
FILLED = 0.15
"""Of the words that are hit, those with a filler in front."""
MISHEARD = 0.5
"""Of the words that are hit and have homophones, those that are written as one of them."""


def _sounding_alike() -> dict[str, tuple[str, ...]]:
    sets = [line.split() for line in HOMOPHONES.replace("\n", "|").split("|") if line]
    found: dict[str, tuple[str, ...]] = {}
    for words in sets:
        for word in words:
            others = (*found.get(word, ()), *(other for other in words if other != word))
            found[word] = tuple(dict.fromkeys(others))
    return found


SOUNDING_ALIKE: Mapping[str, tuple[str, ...]] = _sounding_alike()
"""Each word's homophones."""


class Transcript(Damage):
    """Said and written down again: lower case, no punctuation, fillers ("um", "you know"), homophones (`HOMOPHONES`).

    Apostrophes inside of words stay, and points and commas between digits; hyphens and dashes become spaces.

    intensity: share of the words this is done to; of those `FILLED` get a filler in front, and of those with homophones
    `MISHEARD` are one of them.
    """

    kind: Literal["transcript"] = "transcript"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        found: list[str] = []
        for piece in re.findall(r"\S+|\s+", text):
            if piece.isspace():
                found.append(piece)
                continue
            draw = next(draws)
            said = _said(piece, draw[1]) if self.hit(draw) else piece
            if not said and found:  # nothing but punctuation, which takes the space before it along
                found.pop()
            found.append(said)
        return "".join(found)


def spoken(word: str) -> str:
    """In lower case and without punctuation."""
    word, kept = word.lower(), []
    for at, one in enumerate(word):
        before, after = word[at - 1 : at], word[at + 1 : at + 2]
        if (
            not unicodedata.category(one).startswith("P")
            or (one in "'’" and before.isalpha() and after.isalpha())
            or (one in ".,:" and before.isdigit() and after.isdigit())
        ):
            kept.append(one)
        elif unicodedata.category(one) == "Pd":
            kept.append(" ")
    return " ".join("".join(kept).split())


def _said(word: str, number: float) -> str:
    filled, number = split(number, FILLED)
    misheard, number = split(number, MISHEARD)
    found = spoken(word)
    if not found:
        return found
    other, number = _drawn(SOUNDING_ALIKE.get(found.replace("’", "'"), (found,)), number)
    return (pick(FILLERS, number) + " " if filled else "") + (other if misheard else found)


def _drawn(options: tuple[str, ...], number: float) -> tuple[str, float]:
    """One of the options, and what is left of the number."""
    scaled = number * len(options)
    return options[int(scaled)], scaled - int(scaled)
