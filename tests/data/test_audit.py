from prefloop.data.audit import duplicates, length_summary, shared_ngrams


def test_ngrams_that_both_sides_share() -> None:
    a = ["The quick brown fox jumps over it.", "one two three four"]
    b = ["see: the QUICK, brown fox\njumps!", "one two three four"]
    assert shared_ngrams(a, b) == {"the quick brown fox jumps"}
    assert shared_ngrams(a, b, n=4) == {"the quick brown fox", "quick brown fox jumps", "one two three four"}
    assert shared_ngrams(a, []) == set()
    assert shared_ngrams(["don't you dare"], ["Don\u2019t, you"], n=2) == {"don't you"}


def test_ngrams_do_not_cross_texts() -> None:
    assert shared_ngrams(["a b", "c d"], ["a b c d"], n=3) == set()


def test_duplicates_but_for_case_and_punctuation() -> None:
    assert duplicates(["Hi, you!", "bye", "hi you", "BYE.", "other", "hi  you"]) == [(0, 2, 5), (1, 3)]
    assert duplicates(["?", "!", " ? "]) == [(0, 2)]
    assert duplicates([]) == []


def test_lengths_in_words() -> None:
    assert length_summary(["a", "a b c", "a b c d e f g h"]) == {"n": 3, "mean": 4.0, "median": 3, "min": 1, "max": 8}
    assert length_summary([]) == {"n": 0, "mean": 0.0, "median": 0, "min": 0, "max": 0}
