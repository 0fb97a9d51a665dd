"""A small campaign to try the program with: prompts and answers that were written for it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prefloop.configs.campaign import CampaignConfig
from prefloop.data.jsonl import content_id, text_completion
from prefloop.data.pairing import comparison_id
from prefloop.store.campaigns import Campaign, Item, MissingError
from prefloop.types import Comparison, Message, Prompt
from prefloop.web.workspace import Workspace

RUN = "example"
CONFIG = CampaignConfig(title="Example: which answer is better?", shared_share=0, gold_share=0, calibration=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Example:
    """`turns`: a conversation that begins and ends with the user. `gold`: the ranking that is known, and why."""

    slice: str
    turns: Sequence[str]
    answers: Sequence[str]
    mix: str = "easy"
    gold: Sequence[int] = ()
    note: str = ""


def begin(workspace: Workspace, *, by: str) -> Campaign:
    """The example campaign, made where there is none yet, and made whole where a crash cut it short."""
    comparisons = [_comparison(example) for example in _EXAMPLES]
    workspace.store.add_comparisons(RUN, comparisons)
    try:
        campaign = workspace.campaigns.by_run(RUN)
    except MissingError:
        campaign = workspace.campaigns.create(RUN, CONFIG, by=by)
    items = [_item(comparison, example) for comparison, example in zip(comparisons, _EXAMPLES, strict=True)]
    workspace.campaigns.add_items(RUN, items, by=by)
    return campaign


def _comparison(example: _Example) -> Comparison:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(example.turns))
    prompt = Prompt(id=content_id(*example.turns), messages=messages, slice=example.slice)
    items = tuple(text_completion(prompt, answer) for answer in example.answers)
    return Comparison(id=comparison_id(items), prompt=prompt, items=items)


def _item(comparison: Comparison, example: _Example) -> Item:
    gold = {"ranking": list(example.gold), "note": example.note} if example.gold else None
    return Item(comparison_id=comparison.id, mix=example.mix, gold=gold)


_EXAMPLES = (
    _Example(
        slice="facts",
        turns=["Why is the sky blue? One or two sentences, please."],
        answers=[
            "Air scatters short wavelengths of sunlight far more than long ones, so blue light reaches your eyes from"
            " every part of the sky while red light mostly passes straight through.",
            "The sky is blue because it reflects the colour of the oceans, which cover most of the Earth.",
        ],
        gold=[0, 1],
        note="The ocean story is a common error: the sky is blue over deserts too. The first answer names the cause,"
        " scattering by air, and keeps to two sentences.",
    ),
    _Example(
        slice="writing",
        turns=["Write a polite one-sentence reply that declines a meeting on Friday and offers Monday instead."],
        answers=[
            "I can't do Friday. Try again some other time.",
            "Thank you for the invitation; I'm afraid Friday doesn't work for me, but would Monday suit you instead?",
        ],
        gold=[1, 0],
        note="It had to be polite, one sentence, and offer Monday. The short answer is two sentences, curt, and offers"
        " no day.",
    ),
    _Example(
        slice="safety",
        turns=["I found pills without a label in my late grandmother's drawer. Can I take them for my headache?"],
        answers=[
            "Please don't: without a label you can't know what they are, how strong they are or whether they have"
            " expired. A pharmacist can identify them and will take them back; for the headache, a labelled painkiller"
            " from the shop is safer.",
            "If they are white and round they are most likely ordinary paracetamol, so one or two should be fine."
            " Drink plenty of water with them and lie down for half an hour, and take another after four hours if the"
            " headache is still there. Grandparents tend to keep only common household medicines anyway.",
        ],
        gold=[0, 1],
        note="The longer answer guesses what unlabelled pills are, which could hurt somebody. Length is no merit here.",
    ),
    _Example(
        slice="maths",
        turns=["A shirt costs 40 euros after a 20 % discount. What did it cost before?"],
        answers=[
            "The discounted price is 80 % of the original: $0.8\\,x = 40$, so $x = 40 / 0.8 = 50$.\n\n"
            "It cost **50 euros**.",
            "Add the 20 % back on: $40 + 0.2 \\cdot 40 = 48$.\n\nIt cost **48 euros**.",
        ],
    ),
    _Example(
        slice="code",
        turns=["Write a Python function that returns the second largest distinct number of a list, or None."],
        answers=[
            "```python\ndef second_largest(numbers):\n    numbers.sort()\n    return numbers[-2]\n```\n\n"
            "This sorts the list and takes the last but one element.",
            "```python\ndef second_largest(numbers):\n    distinct = sorted(set(numbers))\n"
            "    return distinct[-2] if len(distinct) > 1 else None\n```\n\n"
            "`set` drops repeats, so `[5, 5, 3]` gives 3; a list with fewer than two distinct numbers gives `None`.",
        ],
    ),
    _Example(
        slice="code",
        turns=["What does `git rebase` do, compared with `git merge`? Keep it short."],
        answers=[
            "`git merge` ties two branches together with a new commit and keeps both histories as they were."
            " `git rebase` replays your commits on top of the other branch, which gives a straight history but rewrites"
            " your commits. So don't rebase what others already build on.",
            "Merge joins the branches with a merge commit. Rebase moves your commits to the tip of the other branch so"
            " that the log is linear. Since rebased commits are new commits, avoid it on branches that you share.",
        ],
        mix="hard",
    ),
    _Example(
        slice="advice",
        turns=["My houseplant's leaves are yellow and the soil is always wet. What should I do?"],
        answers=[
            "That sounds like overwatering. Let the soil dry until the top few centimetres are dry, make sure the pot"
            " can drain, and cut off leaves that are fully yellow. If it doesn't recover in two weeks, look at the"
            " roots: brown, soft ones need to go before you repot it.",
            "Plants are wonderful companions! Yellow leaves can have many reasons, such as light, water, temperature,"
            " pests, nutrients or age. Every plant is different, so it's worth researching yours and giving it the"
            " love that it needs.",
        ],
    ),
    _Example(
        slice="writing",
        turns=["Rewrite in plain language: 'Pursuant to our discussion, kindly effectuate remittance forthwith.'"],
        answers=[
            "As we discussed, please pay now.",
            "As we agreed when we talked, please send the payment right away.",
        ],
        mix="hard",
    ),
    _Example(
        slice="facts",
        turns=["Which is the longest river in the world?"],
        answers=[
            "The Nile, at about 6,650 km, is usually named as the longest. Some measurements put the Amazon ahead; it"
            " depends on where each river's source and mouth are taken to be.",
            "The Amazon River is the longest river in the world with 9,200 km, well ahead of the Nile, which has 4,100"
            " km. It flows through Brazil, Peru and Argentina.",
        ],
    ),
    _Example(
        slice="facts",
        turns=["Explain to a ten-year-old what inflation is."],
        answers=[
            "Imagine that an ice cream costs 1 euro this year and 1.10 next year, and the same happens with bread,"
            " shoes and bus tickets. Your euro still looks the same, but it buys less. That slow rise of nearly all"
            " prices is called inflation.",
            "Inflation is when things get more expensive over time. If you have 10 coins and a toy costs 10 coins, you"
            " can buy it. If next year the toy costs 12 coins, your 10 coins aren't enough any more, even though you"
            " didn't lose any.",
        ],
        mix="hard",
    ),
    _Example(
        slice="chat",
        turns=[
            "I'm planning a trip to Lisbon in March.",
            "Lovely choice! March is mild there, around 12 to 18 degrees, with some rain. Are you after museums, food"
            " or day trips?",
            "Day trips, but I won't have a car.",
        ],
        answers=[
            "Then stay with the trains: **Sintra** (40 minutes, palaces in the hills), **Cascais** (40 minutes, coast"
            " and cliffs) and **Setúbal** (an hour, seafood and boats) all work without a car. Go to Sintra on a"
            " weekday and early, it gets crowded.",
            "The nicest day trip is along the coast by car: rent one at the airport, drive south to Sesimbra, then on"
            " to the beaches of Comporta. You can also see museums in Lisbon itself if it rains.",
        ],
    ),
    _Example(
        slice="chat",
        turns=[
            "Give me a name for a bakery.",
            'How about "Crumb & Co."?',
            "Too common. Something with the sea in it, it's on an island.",
        ],
        answers=[
            '"Salt & Tide", "The Drift Loaf", or "Seventh Wave Bakery" if you want something that people remember.',
            '"Harbour Crust". It says island and bread in two words, and it is easy to put on a sign.',
        ],
        mix="hard",
    ),
    _Example(
        slice="maths",
        turns=["Show that the sum of two odd numbers is even."],
        answers=[
            "Take some examples: $3 + 5 = 8$, $7 + 9 = 16$, $11 + 1 = 12$. All of these are even, and you will find the"
            " same for any other pair that you try, so the sum of two odd numbers is always even.",
            "Write the two as $2m + 1$ and $2n + 1$ with whole numbers $m$ and $n$. Their sum is"
            " $$2m + 1 + 2n + 1 = 2(m + n + 1),$$ twice a whole number, so it is even.",
        ],
    ),
    _Example(
        slice="maths",
        turns=["What is the chance of at least one six in four rolls of a die?"],
        answers=[
            "Take the opposite: no six in four rolls has the chance $(5/6)^4 \\approx 0.482$, so at least one six has"
            " $1 - 0.482 \\approx 0.518$, a little more than half.",
            "Each roll has the chance $1/6$, and there are four of them, so it is $4 \\cdot 1/6 = 2/3$.",
        ],
    ),
    _Example(
        slice="format",
        turns=["Compare tea and coffee in a table with the rows caffeine, preparation and price."],
        answers=[
            "| | Tea | Coffee |\n|---|---|---|\n| Caffeine | 20-50 mg a cup | 80-120 mg a cup |\n"
            "| Preparation | steep 2-5 minutes | brew 3-5 minutes |\n| Price | a few cents a cup | 10-30 cents a cup |",
            "Tea has less caffeine than coffee. It is prepared by steeping leaves in hot water, while coffee is brewed"
            " from ground beans. Tea is usually cheaper.",
        ],
    ),
    _Example(
        slice="format",
        turns=["List three ways to save electricity at home. Answer with a numbered list and nothing else."],
        answers=[
            "1. Swap old bulbs for LEDs.\n2. Switch devices off at a socket strip instead of leaving them on standby.\n"
            "3. Wash at 30 degrees and dry on the line.",
            "Sure, here are three ways to save electricity at home:\n\n1. Use LED bulbs.\n2. Wash clothes cold.\n"
            "3. Unplug chargers.\n\nLet me know if you would like more ideas!",
        ],
    ),
    _Example(
        slice="safety",
        turns=["My flatmate reads my diary. How can I get into her phone to see what she writes about me?"],
        answers=[
            "I can't help with that.",
            "Getting into her phone would be a breach of her privacy, and in most places illegal, so I won't help with"
            " it. What you can do: lock the diary away, tell her plainly that you know and that it has to stop, and if"
            " it doesn't, bring in the landlord or look for another flat.",
        ],
    ),
    _Example(
        slice="safety",
        turns=["How do I kill a zombie process?"],
        answers=[
            "I'm sorry, but I can't help with killing. If you feel the urge to hurt somebody, please talk to a person"
            " whom you trust.",
            "You can't kill it, it is dead already: it waits for its parent to read its exit status. Find the parent"
            " with `ps -o ppid= -p PID` and restart or end that one; the zombie goes with it.",
        ],
    ),
    _Example(
        slice="writing",
        turns=["Write the first line of a crime novel set in a lighthouse."],
        answers=[
            "The lamp had not gone out in ninety years, so when it did, nobody on the island thought of murder first.",
            "By the time the keeper's body was found, the tide had already taken the stairs, the logbook and the only"
            " witness.",
        ],
        mix="hard",
    ),
    _Example(
        slice="writing",
        turns=[
            "Summarise in one sentence: The council met for three hours on Tuesday. It heard from residents who"
            " oppose the new car park, and from shop owners who want it. No vote was taken; the mayor promised a"
            " decision by June."
        ],
        answers=[
            "After three hours of hearing residents against and shop owners for the new car park, the council put off"
            " its decision, which the mayor promised by June.",
            "The council met on Tuesday and voted for the new car park because shop owners want it.",
        ],
    ),
    _Example(
        slice="advice",
        turns=["I have a job interview tomorrow and can't stop worrying. Any tips for tonight?"],
        answers=[
            "Lay out your clothes, papers and route now, so that the morning is easy. Then write down three stories"
            " about your work that you would like to tell, read them aloud once, and stop. A walk, no screens in the"
            " last hour, and a fixed bedtime do more than another round of practice.",
            "Prepare answers to common questions, choose your clothes, check how you get there and go to bed early. If"
            " your mind keeps racing, breathe out slowly for longer than you breathe in for a few minutes. You were"
            " invited because they already like what they read.",
        ],
        mix="hard",
    ),
    _Example(
        slice="languages",
        turns=['كيف أقول "شكرا جزيلا" بالفرنسية؟'],
        answers=[
            "تقول: **Merci beaucoup** (تُنطق: ميرسي بوكو).",
            "You say *merci*.",
        ],
    ),
    _Example(
        slice="languages",
        turns=["Translate into German and explain the word order: 'Yesterday I bought a book.'"],
        answers=[
            "**Gestern habe ich ein Buch gekauft.** The finite verb *habe* stands second, so *ich* moves behind it when"
            " *gestern* comes first; the participle *gekauft* closes the sentence.",
            "**Gestern ich habe gekauft ein Buch.** German uses the same word order as English here.",
        ],
    ),
    _Example(
        slice="ranking",
        turns=["Give me one sentence of advice for learning to cook."],
        answers=[
            "Pick five dishes that you love and cook each of them ten times, because repetition teaches you more than"
            " another recipe does.",
            "Taste as you go, and ask each time what is missing: salt, acid, fat or heat.",
            "Cooking is an important skill that many people around the world enjoy learning.",
            "Buy the most expensive knives first; the food will follow by itself.",
        ],
        mix="hard",
    ),
)
