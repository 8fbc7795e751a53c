"""The sentences whose embeddings the demo compares, written for this package."""

from __future__ import annotations

from typing import Final

SENTENCES: Final[tuple[str, ...]] = (
    "The ferry leaves at half past six every morning except Sunday.",
    "Water boils at a lower temperature high up in the mountains.",
    "She tuned the old violin by ear and played until dark.",
    "How long does it take to get a passport renewed?",
    "Two goals in the last five minutes turned the match around.",
    "Please send the signed contract back before Friday noon.",
    "A hash table trades memory for constant-time look-ups.",
    "The soup needs more salt and perhaps a squeeze of lemon.",
    "Interest rates were left unchanged for the third time this year.",
    "Our neighbour's dog barks whenever the postman comes.",
    "The vaccine is given in two doses, four weeks apart.",
    "Nobody expected the small bookshop to outlive the supermarket.",
    "Satellites measure the height of the sea to within a few centimetres.",
    "I forgot my umbrella on the train again.",
    "The committee rejected the proposal by nine votes to four.",
    "Bees find their way home by the position of the sun.",
    "My laptop does not wake up after I close the lid.",
    "In winter the lake freezes and children skate to school.",
    "The novel tells the story of three sisters during a long war.",
    "Turn left at the church and follow the river for a mile.",
    "Half of the weights of a neural network can often be removed.",
    "He has been learning Portuguese since he moved to Lisbon.",
    "Fresh bread, two onions, a dozen eggs and some coffee.",
    "Is there a table for five people near the window?",
)
