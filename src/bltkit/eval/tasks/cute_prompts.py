"""What `cute` asks: for each of its tasks a sentence of instruction, the form of the question, four worked examples.

All written for this project; no example is an item of the data. Where a letter or a word stands in a text several
times, each of them is meant, as in the data; at least one example of such a task shows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CutePrompt:
    """instruction: one sentence. form: the question, with {0}, {1}, ... for an item's inputs (`input1`, `input2`, ...).
    examples: inputs and, last, the label."""

    instruction: str
    form: str
    examples: tuple[tuple[str, ...], ...]


COMPOSITION: Mapping[str, CutePrompt] = {
    "spell": CutePrompt(
        "Spell out each word, with a space between its letters.",
        'Spell out the word "{0}".',
        (
            ("garden", "g a r d e n"),
            ("lamp", "l a m p"),
            ("whisper", "w h i s p e r"),
            ("coffee", "c o f f e e"),
        ),
    ),
    "spell_inverse": CutePrompt(
        "Join the letters of each word that is spelled out.",
        'Join the letters "{0}".',
        (
            ("w i n t e r", "winter"),
            ("b o a t", "boat"),
            ("p u m p k i n", "pumpkin"),
            ("l a d d e r", "ladder"),
        ),
    ),
    "contains_char": CutePrompt(
        'Answer "Yes" or "No": does the word contain the letter?',
        'Is the letter "{0}" in the word "{1}"?',
        (
            ("m", "lemon", "Yes"),
            ("k", "tunnel", "No"),
            ("s", "forest", "Yes"),
            ("o", "pencil", "No"),
        ),
    ),
    "contains_word": CutePrompt(
        'Answer "Yes" or "No": does the sentence contain the word?',
        'Is the word "{0}" in the sentence "{1}"?',
        (
            ("ladder", "The painter left his ladder in the hall.", "Yes"),
            ("window", "A grey cat sleeps beside the stove.", "No"),
            ("rain", "We walked home under a clear sky.", "No"),
            ("bread", "My aunt bakes bread every Friday.", "Yes"),
        ),
    ),
}

SIMILARITY: Mapping[str, CutePrompt] = {
    "orth": CutePrompt(
        "Choose the word that is spelled more like the first word.",
        'Which word is spelled more like "{0}": "{1}" or "{2}"?',
        (
            ("river", "stream", "diver", "diver"),
            ("candle", "handle", "torch", "handle"),
            ("horse", "house", "pony", "house"),
            ("angry", "furious", "hungry", "hungry"),
        ),
    ),
    "sem": CutePrompt(
        "Choose the word that is closer in meaning to the first word.",
        'Which word is closer in meaning to "{0}": "{1}" or "{2}"?',
        (
            ("river", "stream", "diver", "stream"),
            ("candle", "handle", "torch", "torch"),
            ("horse", "house", "pony", "pony"),
            ("angry", "furious", "hungry", "furious"),
        ),
    ),
}

CHARACTERS: Mapping[str, CutePrompt] = {
    "ins_char": CutePrompt(
        "Insert a letter into each word, behind every occurrence of another letter.",
        'Insert "{0}" after every "{1}" in "{2}".',
        (
            ("z", "l", "balloon", "balzlzoon"),
            ("h", "e", "desk", "dehsk"),
            ("q", "t", "turtle", "tqurtqle"),
            ("b", "r", "winter", "winterb"),
        ),
    ),
    "del_char": CutePrompt(
        "Delete every occurrence of a letter from each word.",
        'Delete every "{0}" from "{1}".',
        (
            ("a", "banana", "bnn"),
            ("k", "basket", "baset"),
            ("p", "pillow", "illow"),
            ("s", "mattress", "mattre"),
        ),
    ),
    "sub_char": CutePrompt(
        "Replace every occurrence of a letter in each word by another letter.",
        'Replace every "{0}" by "{1}" in "{2}".',
        (
            ("n", "v", "lantern", "lavterv"),
            ("o", "u", "robot", "rubut"),
            ("c", "j", "castle", "jastle"),
            ("g", "w", "finger", "finwer"),
        ),
    ),
    "swap_char": CutePrompt(
        "Swap two letters of each word.",
        'Swap "{0}" and "{1}" in "{2}".',
        (
            ("g", "d", "garden", "dargen"),
            ("l", "p", "lamp", "paml"),
            ("e", "b", "zebra", "zbera"),
            ("c", "h", "chimney", "hcimney"),
        ),
    ),
}

WORDS: Mapping[str, CutePrompt] = {
    "ins_word": CutePrompt(
        "Insert a word into each sentence, behind every occurrence of another word.",
        'Insert "{0}" after every "{1}" in "{2}".',
        (
            (
                "purple",
                "old",
                "The old mill stands by the old bridge.",
                "The old purple mill stands by the old purple bridge.",
            ),
            ("seven", "bought", "My uncle bought a wooden boat.", "My uncle bought seven a wooden boat."),
            ("cloud", "quietly", "The snow fell quietly.", "The snow fell quietly cloud."),
            ("lamp", "Who", "Who painted this door?", "Who lamp painted this door?"),
        ),
    ),
    "del_word": CutePrompt(
        "Delete every occurrence of a word from each sentence.",
        'Delete every "{0}" from "{1}".',
        (
            ("very", "The very tall man has a very small dog.", "The tall man has a small dog."),
            ("wooden", "My uncle bought a wooden boat.", "My uncle bought a boat."),
            ("quietly", "The snow fell quietly.", "The snow fell."),
            ("Today", "Today the library opens late.", "the library opens late."),
        ),
    ),
    "sub_word": CutePrompt(
        "Replace every occurrence of a word in each sentence by another word.",
        'Replace every "{0}" by "{1}" in "{2}".',
        (
            ("old", "lemon", "The old mill stands by the old bridge.", "The lemon mill stands by the lemon bridge."),
            ("boat", "theory", "My uncle bought a wooden boat.", "My uncle bought a wooden theory."),
            ("fell", "button", "The snow fell quietly.", "The snow button quietly."),
            ("Who", "music", "Who painted this door?", "music painted this door?"),
        ),
    ),
    "swap_word": CutePrompt(
        "Swap two words of each sentence.",
        'Swap "{0}" and "{1}" in "{2}".',
        (
            ("uncle", "boat", "My uncle bought a wooden boat.", "My boat bought a wooden uncle."),
            ("fell", "quietly", "The snow fell quietly.", "The snow quietly fell."),
            ("this", "Who", "Who painted this door?", "this painted Who door?"),
            ("late", "library", "Today the library opens late.", "Today the late opens library."),
        ),
    ),
}

PROMPTS: Mapping[str, CutePrompt] = {**COMPOSITION, **SIMILARITY, **CHARACTERS, **WORDS}
