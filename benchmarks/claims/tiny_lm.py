"""A tiny language and a model of it, for claims about policies: reviews whose sentiment is known, and puzzles.

A review is one to four sentences on what the prompt names; of its words some are good (+1) and some bad (-1). A policy
begins as a random Llama of 0.1 M weights and is fine-tuned on demonstrations of all moods by the SFT stage. Rewards,
each to be named as "tiny_lm:NAME" in a stage's configuration:

- `sentiment`, the true reward of most claims: good words less bad words, over SPREAD, at most CAP of a kind;
- `gold`, which people would give where praise can be overdone: sentiment, less 1 for each sentiment word that is said
  again, less 0.1 for each token over 24;
- `right`: 1 where a puzzle's answer is right, else 0;
- `dice`: a random number by the answer's id, the control of all.

A process that uses this needs benchmarks/claims on its path; scripts there have it.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefloop.configs.sft import SFTConfig
from prefloop.configs.shared import EngineConfig, OptimConfig
from prefloop.data.jsonl import write_jsonl
from prefloop.data.trees import answer_tree
from prefloop.engine.build import build_encoder, build_sampler, build_scorer, load
from prefloop.engine.local import LocalScorer
from prefloop.stages import sft
from prefloop.stages.sampling import sample_groups
from prefloop.types import Completion, Demonstration, Message, Preference, Prompt, Sampling, Score

GOOD = ("great", "lovely", "funny", "superb", "warm", "brilliant", "charming", "loved", "enjoyed", "admired")
BAD = ("awful", "dull", "cold", "weak", "boring", "terrible", "clumsy", "hated", "disliked", "regretted")
PLAIN = ("long", "short", "new", "old", "quiet", "loud", "blue", "plain", "saw", "tried", "took", "found")
THINGS = ("film", "book", "song", "meal", "hotel", "trip", "game", "car", "play", "coat", "lamp", "garden")
GLUE = ("the", "was", "it", "felt", "and", "i", "very", "rather", "so", "but", ".", "review", "largest", "answer", "hm")
DIGITS = tuple("0123456789")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
SPREAD, CAP = 1.35, 6  # SPREAD: the std of the start's answers is then 1
MAX_TOKENS = 40
ENGINE = EngineConfig(threads=1, dtype="fp32", cache_mb=64, token_budget=4096)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, its leading space included; pad = eos = <|im_end|>."""
    words = [f" {word}" for word in (*GOOD, *BAD, *PLAIN, *THINGS, *GLUE, *DIGITS)]
    names = [*SPECIAL, "user", "assistant", *words]
    backend = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<|endoftext|>"))
    backend.pre_tokenizer = Split(Regex(r" ?[^ ]+"), behavior="isolated")
    backend.decoder = Fuse()
    backend.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def write_model(folder: Path, seed: int, width: int = 64, layers: int = 2) -> None:
    """A random model of this language."""
    words = tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)


def review_prompts(count: int = 48, *, seed: int = 0, split: str = "train") -> list[Prompt]:
    """Prompts that ask for a review; those of another split or seed name their things in another order."""
    chance = random.Random(f"{split}/{seed}")
    found = []
    for index in range(count):
        things = " ".join(chance.sample(THINGS, 2))
        message = Message(role="user", content=f"review the {things}")
        found.append(Prompt(id=f"{split}-{seed}-{index}", messages=(message,), slice=things.split()[0], split=split))
    return found


def review_demonstrations(count: int, seed: int) -> list[Demonstration]:
    """Reviews of all moods, by chance."""
    chance = random.Random(seed)
    prompts = review_prompts(count, seed=seed, split="demonstrations")
    return [Demonstration(id=p.id, prompt=p, completion=_review(p, chance)) for p in prompts]


def _review(prompt: Prompt, chance: random.Random) -> str:
    things = prompt.messages[0].content.split()[2:]

    def word(good: int, bad: int, plain: slice, mood: slice) -> str:
        return chance.choice(chance.choices((GOOD[mood], BAD[mood], PLAIN[plain]), weights=(good, bad, 2))[0])

    said = []
    good, bad = chance.choice(((2, 1), (1, 2), (1, 1)))
    for _ in range(chance.randint(1, 4)):
        thing, mood = chance.choice(things), word(good, bad, slice(0, 8), slice(0, 7))
        degree = chance.choice(("very ", "rather ", "so ", "", ""))
        said += [
            chance.choice(
                (
                    f"the {thing} was {degree}{mood} .",
                    f"it felt {degree}{mood} and {word(good, bad, slice(0, 8), slice(0, 7))} .",
                    f"i {word(good, bad, slice(8, 12), slice(7, 10))} the {thing} .",
                )
            )
        ]
    return " " + " ".join(said)


def puzzle_prompts(count: int, *, seed: int = 0, split: str = "train") -> list[Prompt]:
    """Which of three digits is the largest? The checks hold it. Of the 720 puzzles each split has its own."""
    triples = [(a, b, c) for a in range(10) for b in range(10) for c in range(10) if len({a, b, c}) == 3]
    random.Random(1).shuffle(triples)
    mine = {"train": triples[:420], "dev": triples[420:520], "test": triples[520:]}[split]
    random.Random(f"{split}/{seed}").shuffle(mine)
    return [_puzzle(f"{split}-{seed}-{index}", mine[index % len(mine)], split) for index in range(count)]


def _puzzle(name: str, digits: Sequence[int], split: str) -> Prompt:
    message = Message(role="user", content="largest " + " ".join(map(str, digits)))
    return Prompt(id=name, messages=(message,), split=split, checks={"largest": str(max(digits))})


def puzzle_demonstrations(count: int, seed: int, right: float = 0.5) -> list[Demonstration]:
    """Answers to puzzles of the training split, of which a share `right` is right and the rest names another of the
    three: a model of them begins about there. Each hesitates ("hm") up to six times first, whatever its answer."""
    chance, prompts = random.Random(seed), puzzle_prompts(count, seed=seed)
    found = []
    for index, prompt in enumerate(prompts):
        largest = prompt.checks["largest"]
        others = [digit for digit in prompt.messages[0].content.split()[1:] if digit != largest]
        said = largest if chance.random() < right else chance.choice(others)
        completion = " hm" * chance.randint(0, 6) + f" answer {said}"
        found.append(Demonstration(id=f"{prompt.id}/{index}", prompt=prompt, completion=completion))
    return found


def fine_tuned(
    folder: Path, demonstrations: Sequence[Demonstration], seed: int, *, epochs: int = 4, width: int = 64
) -> str:
    """The run folder of a model of `demonstrations`, made once: the policy that a claim begins with."""
    if not (folder / "model").exists():
        write_model(folder / "model", seed, width)
        write_jsonl(folder / "demonstrations.jsonl", demonstrations)
    sft.run(
        SFTConfig(
            out=str(folder / "sft"),
            model=str(folder / "model"),
            demonstrations=str(folder / "demonstrations.jsonl"),
            epochs=epochs,
            batch=32,
            optim=OptimConfig(lr=3e-3),
            engine=ENGINE,
            save_every=10_000,
            seed=seed,
        )
    )
    return str(folder / "sft")


def sampled(
    checkpoint: str, prompts: Sequence[Prompt], n: int, seed: int, *, temperature: float = 1.0
) -> list[list[Completion]]:
    """n answers to each prompt."""
    loaded = load(checkpoint, ENGINE)
    samplings = [Sampling(temperature=temperature, max_tokens=MAX_TOKENS)] * n
    sampler = build_sampler(loaded, checkpoint, ENGINE)
    return sample_groups(sampler, build_encoder(loaded), prompts, samplings=samplings, seed=(seed, "claim"))


def measured(
    checkpoint: str,
    start: str,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    rewards: Mapping[str, Callable[..., list[Score]]],
) -> dict[str, float]:
    """Means over n answers to each prompt: each of `rewards`, "kl" (exact over the vocabulary, summed over the
    response, nats) to the policy `start`, "length" in tokens, and "stopped", the share that ended by themselves."""
    groups = sampled(checkpoint, prompts, n, seed)
    asked = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
    flat = [completion for group in groups for completion in group]
    found = {name: float(np.mean([s.value for s in reward(asked, flat)])) for name, reward in rewards.items()}
    loaded = load(checkpoint, ENGINE)
    policy: LocalScorer = build_scorer(loaded, ENGINE)
    reference = build_scorer(load(start, ENGINE), ENGINE)
    encoder = build_encoder(loaded)
    trees = [answer_tree(prompt, group, encoder) for prompt, group in zip(prompts, groups, strict=True)]
    readings = policy.forward(trees, {"exact_kl"}, reference=reference)
    found["kl"] = float(np.mean([column.sum() for reading in readings for column in reading.exact_kl.values()]))
    found["length"] = float(np.mean([len(completion.tokens) for completion in flat]))
    return found | {"stopped": float(np.mean([completion.finish_reason == "stop" for completion in flat]))}


def compared(
    groups: Sequence[Sequence[Completion]],
    prompts: Sequence[Prompt],
    reward: Callable[..., list[Score]],
    seed: int,
    *,
    flips: float = 0.0,
) -> list[Preference]:
    """Neighbours of each group compared by `reward`, of which a share is flipped; equal scores are left out."""
    chance = random.Random(seed)
    found = []
    for prompt, group in zip(prompts, groups, strict=True):
        scores = [score.value for score in reward([prompt] * len(group), group)]
        for i in range(0, len(group) - 1, 2):
            if scores[i] == scores[i + 1]:
                continue
            first = (scores[i] > scores[i + 1]) != (chance.random() < flips)
            pair = (group[i], group[i + 1])
            found.append(Preference(prompt=prompt, items=pair, target=float(first), group=prompt.id, simulated=True))
    return found


def sentiment(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """Good words less bad words, at most CAP of a kind, over SPREAD."""
    return [Score(value=_sentiment(c.text.split()) / SPREAD) for c in completions]


def gold(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """Sentiment, where saying a sentiment word again costs 1 and a token over 24 costs 0.1; over SPREAD."""
    found = []
    for completion in completions:
        words = completion.text.split()
        moods = [word for word in words if word in GOOD or word in BAD]
        again = len(moods) - len(set(moods))
        found.append(Score(value=(_sentiment(words) - again - 0.1 * max(0, len(words) - 24)) / SPREAD))
    return found


def _sentiment(words: Sequence[str]) -> int:
    return min(CAP, sum(word in GOOD for word in words)) - min(CAP, sum(word in BAD for word in words))


def right(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """1 where the answer ended with "answer" and the largest digit, else 0."""
    return [
        Score(value=float(c.finish_reason == "stop" and c.text.split()[-2:] == ["answer", p.checks["largest"]]))
        for p, c in zip(prompts, completions, strict=True)
    ]


def dice(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Score]:
    """0 or 1, by a hash of the answer's id."""
    return [Score(value=float(hashlib.sha256(c.id.encode()).digest()[0] % 2)) for c in completions]


def read(path: str | Path) -> Any:
    """A JSON file of a run folder."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
