"""Figures of the paper, for the page: arXiv 2509.15248, "Synthetic bootstrapped pretraining"."""

CITATION = "arXiv:2509.15248"
SMALLEST_PARAMETERS = 3_000_000_000
SMALLEST_TOKENS = 200_000_000_000

RUNS = ("3B, 200B tokens", "3B, 1T tokens", "6B, 1T tokens")

GAINS = (
    ("Unique real tokens", "10 B", "50 B", "50 B"),
    ("Synthetic share", "37.5 %", "12.5 %", "25 %"),
    ("Mean QA accuracy, repetition (%)", "47.66", "55.35", "58.29"),
    ("Gain of SBP (points)", "+2.32", "+0.84", "+1.32"),
    ("Gain of an oracle with unique text (points)", "+5.54", "+1.73", "+2.26"),
    ("Share of the oracle's gain", "42 %", "48 %", "58 %"),
)

QUALITY = (
    ("Repetition inside a document (%)", "4.3", "3.9", "2.6", "1.8"),
    ("Duplicates within a sample of 1 M (%)", "0.8", "0.8", "0.3", "0.7"),
    ("Non-factual, by a judge (%)", "15.1", "8.7", "6.5", "1.8"),
    ("Pair-irrelevance, by a judge (%)", "25.6", "7.8", "6.0", "–"),
    ("Pair-copying, by a judge (%)", "0.1", "0.9", "0.3", "–"),
)
"""Last column: real text."""

SHARES_OF_ORACLE = "42–58 %"
"""Of the oracle's gain in QA accuracy."""

BESIDE = {
    "repetition": "2.6–4.3 % (real 1.8 %)",
    "near_duplicates": "0.3–0.8 % of 1 M (real 0.7 %)",
    "irrelevant": "6.0–25.6 %",
    "d1_copies": "0.1–0.9 %",
}
"""By measure of our panel: the range of the three runs, and real text. Theirs are of another method."""
