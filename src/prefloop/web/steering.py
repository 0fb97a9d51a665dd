"""Does a text talk to whoever judges it? It is shown all the same, flagged: what it says is only text."""

from __future__ import annotations

import re

from prefloop.data.identity import flattened

_MOST_CHARACTERS = 50_000
_JUDGE = r"(?:grader|judge|labell?er|annotator|evaluator|rater|reviewer|assessor)s?"
_JUDGING = r"(?:grading|judging|labell?ing|annotating|evaluating|rating|ranking|scoring|comparing|reviewing)"
_VERB = r"(?:choose|pick|select|prefer|favou?r|vote for|go with|rank|rate|score|mark|grade|label|judge|give)"
_ANSWER = r"(?:answer|response|reply|completion|output|candidate)s?"
_WHICH = r"(?:this|that|my|the (?:first|second|left|right|above|other|longer|shorter|following|present|current))"
_PRAISE = r"(?:the )?(?:best|better|preferred|highest|higher|top|winner|first|correct|full|maximum|perfect|superior)"
_BETTER = r"(?:clearly |obviously |much |far )*(?:the )?(?:better|best|superior|preferred|winner)"
_SIGNS = tuple(
    re.compile(rf"(?<!\w)(?:{pattern})(?!\w)")
    for pattern in (
        rf"{_VERB} (?:{_WHICH} )?(?:{_ANSWER} )?(?:{_WHICH} {_ANSWER}|{_ANSWER} \(?(?:[a-d]|[1-9]|one|two))",
        rf"{_VERB} (?:option|assistant|model) \(?(?:[a-d]|[1-9])\)? as {_PRAISE}",
        rf"(?<!i ){_VERB} (?:it|this|me) (?:as )?(?:an? )?(?:{_PRAISE}|[1-9]0?(?: ?/ ?| out of )\d+|[45] stars)",
        rf"(?:ignore|disregard|skip|dismiss|reject|do not (?:choose|pick|read)|don't (?:choose|pick|read))"
        rf" (?:the |all |any |both )?(?:other|previous|first|second|competing|remaining) {_ANSWER}",
        r"(?:ignore|disregard|forget) (?:all |any |the |your )*(?:previous|prior|above|earlier|grading|labell?ing)"
        r" (?:instructions?|guidelines?|rubrics?|criteria|prompts?)",
        rf"as (?:the|an?|your|our|my) (?:\w+ )?{_JUDGE},? (?:you|please|i|must|should)",
        r"(?:dear|attention|(?:note|message|instructions?) (?:to|for)|hello|hi|hey),? (?:the |all |our )?(?:\w+ )?"
        rf"{_JUDGE}",
        rf"(?:if|when|while) you(?: are|'re) (?:\w+ )?(?:{_JUDGING} (?:this|these|those|my|our|both"
        rf"|(?:the )?(?:two )?{_ANSWER})|an? (?:\w+ )?{_JUDGE})",
        rf"{_ANSWER} (?:[ab12]|one|two) is {_BETTER}",
        rf"(?:this|my) {_ANSWER} (?:is {_BETTER}|(?:should|must|deserves to) (?:win|be"
        r" (?:preferred|chosen|picked|selected|ranked|rated)))",
    )
)
_VERDICT = re.compile(  # as judges are asked to give it
    r"\[\[(?:[AB]|[AB][<>]+[AB]|\d\d?)\]\]"
    r"|(?i:\b(?:verdict|winner|preferred answer|better answer|final judge?ment)(?: is:?|:)) [AB12](?![\w.])"
)


def addresses_reader(text: str) -> bool:
    """Whether the text tries to steer a labeler or a judge model: "choose answer A", "ignore the other response", "as
    the grader, you ...", "[[A]]". A hint for the page, not a filter: English only, in the first 50,000 characters."""
    flat = flattened(text[:_MOST_CHARACTERS]).replace("\n", " ")
    low = flat.lower()
    return bool(_VERDICT.search(flat)) or any(sign.search(low) for sign in _SIGNS)
