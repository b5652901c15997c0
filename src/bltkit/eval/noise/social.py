"""Noise of social media: sooo long words, u for you, emoji, #hashtags. The tables are our own."""

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from bltkit.eval.noise.noise import Damage, Draw, pick, split

ABBREVIATIONS: Mapping[str, tuple[str, ...]] = {
    # Phrases; the longest one that matches is taken.
    "as far as i know": ("afaik",),
    "as soon as possible": ("asap",),
    "be right back": ("brb",),
    "by the way": ("btw",),
    "for what it's worth": ("fwiw",),
    "for your information": ("fyi",),
    "if i recall correctly": ("iirc",),
    "in my opinion": ("imo",),
    "in my humble opinion": ("imho",),
    "in real life": ("irl",),
    "just kidding": ("jk",),
    "let me know": ("lmk",),
    "no problem": ("np",),
    "of course": ("ofc",),
    "oh my god": ("omg",),
    "on my way": ("omw",),
    "right now": ("rn",),
    "see you": ("cu", "cya"),
    "talk to you later": ("ttyl",),
    "thank you": ("ty", "thx"),
    "to be honest": ("tbh",),
    "what the hell": ("wth",),
    "i do not know": ("idk",),
    "i don't know": ("idk", "dunno"),
    "i do not care": ("idc",),
    "i don't care": ("idc",),
    "i love you": ("ily",),
    "going to": ("gonna", "gna"),
    "want to": ("wanna",),
    "got to": ("gotta",),
    "have to": ("hafta", "gotta"),
    "give me": ("gimme",),
    "let me": ("lemme",),
    "kind of": ("kinda",),
    "sort of": ("sorta",),
    "out of": ("outta",),
    "a lot": ("alot", "lots"),
    "at the moment": ("atm",),
    "never mind": ("nvm",),
    "good night": ("gn", "g'nite"),
    "i am": ("im",),
    "you all": ("yall",),
    # Words.
    "about": ("abt", "bout"),
    "account": ("acct",),
    "actually": ("actly",),
    "afternoon": ("aftn",),
    "again": ("agn",),
    "always": ("alwys",),
    "and": ("n", "&"),
    "are": ("r",),
    "at": ("@",),
    "ate": ("8",),
    "awesome": ("awsm",),
    "be": ("b",),
    "because": ("bc", "cuz", "cos", "bcuz"),
    "been": ("bn",),
    "before": ("b4",),
    "birthday": ("bday",),
    "boyfriend": ("bf",),
    "brother": ("bro",),
    "but": ("bt",),
    "can't": ("cant",),
    "cannot": ("cant",),
    "congratulations": ("congrats", "grats"),
    "could": ("cud",),
    "crazy": ("cray",),
    "definitely": ("def", "defo"),
    "didn't": ("didnt",),
    "doesn't": ("doesnt",),
    "don't": ("dont",),
    "enough": ("enuf",),
    "especially": ("esp",),
    "everyone": ("every1",),
    "everything": ("evrything",),
    "facebook": ("fb",),
    "family": ("fam",),
    "favorite": ("fav", "fave"),
    "favourite": ("fav", "fave"),
    "following": ("ff",),
    "for": ("4",),
    "forever": ("4ever", "4eva"),
    "friend": ("frnd", "buddy"),
    "from": ("frm",),
    "girl": ("gurl",),
    "girlfriend": ("gf",),
    "good": ("gd", "gud"),
    "gorgeous": ("gorg",),
    "great": ("gr8",),
    "happy": ("hapy",),
    "hate": ("h8",),
    "have": ("hv", "hav"),
    "here": ("hr",),
    "hilarious": ("hilar",),
    "hours": ("hrs",),
    "hour": ("hr",),
    "i'm": ("im",),
    "i'll": ("ill",),
    "i've": ("ive",),
    "important": ("impt",),
    "information": ("info",),
    "instagram": ("insta", "ig"),
    "isn't": ("isnt",),
    "it's": ("its",),
    "just": ("jst",),
    "know": ("kno",),
    "later": ("l8r", "l8er"),
    "laughing": ("lol", "lmao"),
    "little": ("lil",),
    "love": ("luv", "<3"),
    "lovely": ("luvly",),
    "mate": ("m8",),
    "maybe": ("mayb",),
    "message": ("msg", "dm"),
    "messages": ("msgs", "dms"),
    "minute": ("min",),
    "minutes": ("mins",),
    "moment": ("mo",),
    "months": ("mths",),
    "morning": ("mornin", "am"),
    "myself": ("myslf",),
    "never": ("nvr",),
    "night": ("nite",),
    "nothing": ("nuthin", "nthn"),
    "now": ("nw",),
    "obviously": ("obvs",),
    "of": ("o",),
    "okay": ("ok", "k"),
    "one": ("1",),
    "opinion": ("op",),
    "original": ("og",),
    "outfit": ("fit",),
    "people": ("ppl",),
    "perfect": ("perf",),
    "person": ("prsn",),
    "phone": ("fone",),
    "photo": ("pic",),
    "photos": ("pics",),
    "picture": ("pic",),
    "pictures": ("pics",),
    "please": ("pls", "plz"),
    "pretty": ("prty",),
    "probably": ("prob", "prolly"),
    "problem": ("prob",),
    "question": ("q",),
    "quick": ("qk",),
    "really": ("rly", "srsly"),
    "ridiculous": ("ridic",),
    "right": ("rite",),
    "said": ("sed",),
    "say": ("sa",),
    "school": ("skool",),
    "seconds": ("secs",),
    "see": ("c",),
    "seriously": ("srsly", "fr"),
    "should": ("shud",),
    "sister": ("sis",),
    "someone": ("some1",),
    "something": ("smth", "sth"),
    "sorry": ("sry", "soz"),
    "text": ("txt",),
    "thanks": ("thx", "tx", "thnx"),
    "that": ("dat", "tht"),
    "that's": ("thats",),
    "the": ("da", "teh"),
    "them": ("em",),
    "then": ("thn",),
    "there": ("ther",),
    "they": ("dey",),
    "they're": ("theyre",),
    "thing": ("thng",),
    "this": ("dis", "ths"),
    "though": ("tho",),
    "through": ("thru",),
    "to": ("2",),
    "today": ("2day", "tdy"),
    "together": ("2gether", "tgthr"),
    "tomorrow": ("tmrw", "tmr", "2moro"),
    "tonight": ("2nite", "tnite"),
    "too": ("2",),
    "totally": ("totes",),
    "twitter": ("twtr",),
    "two": ("2",),
    "until": ("til",),
    "very": ("v", "vry"),
    "video": ("vid",),
    "videos": ("vids",),
    "wait": ("w8",),
    "waiting": ("w8ing",),
    "was": ("wz", "wuz"),
    "wasn't": ("wasnt",),
    "week": ("wk",),
    "weekend": ("wknd",),
    "welcome": ("wlcm",),
    "well": ("wel",),
    "what": ("wat", "wut"),
    "what's": ("whats", "wassup"),
    "when": ("wen",),
    "where": ("wher",),
    "whatever": ("whatevs", "wtv"),
    "why": ("y",),
    "will": ("wil",),
    "with": ("w/", "wit"),
    "without": ("w/o",),
    "won't": ("wont",),
    "work": ("wrk",),
    "would": ("wud",),
    "wouldn't": ("wouldnt",),
    "year": ("yr",),
    "years": ("yrs",),
    "yes": ("yea", "yup", "yas"),
    "yesterday": ("ystrdy",),
    "you": ("u", "ya"),
    "you're": ("ur", "youre"),
    "your": ("ur", "yr"),
    "yours": ("urs",),
}
"""What is written in full -> how it is abbreviated."""

EMOJI = ("😂", "😭", "❤️", "🔥", "🙏", "😍", "💀", "👀", "✨", "🙌", "😊", "🤔", "🥺", "💯", "👍", "🎉")

ABBREVIATED = 0.6
"""Of the words that are hit and have an abbreviation, those that become it."""
ELONGATED = 0.4
"""Of the other words that are hit, those with a letter drawn out."""
TAGGED = 0.4
"""Of the words left by then, those that become hashtags."""
DECORATED = 0.5
"""Of the words left by then, those with an emoji behind them; the rest loses its capitals and apostrophes."""
LONGEST = 5
"""Words of the longest phrase in the table."""


class Social(Damage):
    """As on social media: abbreviations (`ABBREVIATIONS`), letters drawn out, #hashtags, emoji, no capitals.

    intensity: share of the words, and of the phrases in the table, that one of these is done to. White space stays.
    """

    usual: ClassVar[float] = 0.3
    kind: Literal["social"] = "social"

    def damage(self, text: str, draws: Iterator[Draw]) -> str:
        return self.per_unit(list(_units(text)), draws, _posted)


def _units(text: str) -> Iterator[str]:
    """Words, phrases of the table, and white space; whatever the draws."""
    pieces = re.findall(r"\S+|\s+", text)
    at = 0
    while at < len(pieces):
        sizes = range(2 * LONGEST - 1, 1, -2) if not pieces[at].isspace() else ()
        size = next((size for size in sizes if _plain("".join(pieces[at : at + size])) in ABBREVIATIONS), 1)
        yield "".join(pieces[at : at + size])
        at += size


def _parts(unit: str) -> tuple[str, str, str]:
    """Punctuation in front, the word or words, punctuation behind."""
    found = re.fullmatch(r"([\W_]*)(.*?)([\W_]*)", unit, re.DOTALL)
    assert found is not None
    return found[1], found[2], found[3]


def _plain(unit: str) -> str:
    """As the table has it."""
    return _parts(unit)[1].lower().replace("’", "'")


def _posted(unit: str, number: float) -> str:
    before, core, behind = _parts(unit)
    if unit.isspace():
        return unit
    if not core:
        return unit + unit[-1] * (1 + int(number * 4))
    if (plain := _plain(unit)) in ABBREVIATIONS:
        abbreviated, number = split(number, ABBREVIATED)
        if abbreviated:
            return before + pick(ABBREVIATIONS[plain], number) + behind
    longer, number = split(number, ELONGATED)
    if longer and (drawn_out := _elongated(core, 2 + int(number * 4))) != core:
        return before + drawn_out + behind
    tagged, number = split(number, TAGGED)
    if tagged and "#" not in before:
        return f"{before}#{''.join(one for one in core if one.isalnum())}{behind}"
    decorated, number = split(number, DECORATED)
    if decorated:
        return f"{unit} {pick(EMOJI, number)}"
    return before + core.lower().replace("'", "").replace("’", "") + behind


def _elongated(word: str, copies: int) -> str:
    """With more of its last vowel, or of its last letter where it has none; digits stay."""
    vowels = [at for at, one in enumerate(word) if one in "aeiouyAEIOUY"]
    at = vowels[-1] if vowels else len(word) - 1
    return word[: at + 1] + word[at] * copies + word[at + 1 :] if word[at].isalpha() else word
