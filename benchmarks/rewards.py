"""Completions a second through parser and reward, against matching by longest common subsequence; and the pool of rewards.

python benchmarks/rewards.py [--runs 7]
Half of the completions are well formed, the others mangled: slips of spelling, another case, numbers, a missing tag, cut off.
The peer reads the same completions with the same rules for form and the same NDCG; it takes for each line of an answer the
candidate with the longest common subsequence (pylcs). One process, sides alternate. Then the seconds from the first request
to the last reward of a step whose reward takes 5 ms a response, in the driver and with reward.num_workers=2, beside a
generation that goes on elsewhere.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pylcs

from r1ranker.data.prompt_store import Prompt
from r1ranker.rewards import compute_score
from r1ranker.rewards.parts import direct_task_score, format_score, iterative_task_score, tags_score
from r1ranker.rollout.engine import Completion
from r1ranker.rollout.episodes import Turn
from r1ranker.tasks.answers import prepend_prefill
from r1ranker.tasks.prompts import AnswerFormat
from r1ranker.trainer.config.schema import RewardFunctionConfig
from r1ranker.trainer.experience.collect import SampledBatch
from r1ranker.trainer.scoring.pool import RewardPool

TITLES = """
Toy Story (1995)|Jumanji (1995)|Grumpier Old Men (1995)|Waiting to Exhale (1995)|Father of the Bride Part II (1995)|Heat (1995)
Sabrina (1995)|American President, The (1995)|Cutthroat Island (1995)|Sense and Sensibility (1995)|Four Rooms (1995)|Get Shorty (1995)
Leaving Las Vegas (1995)|City of Lost Children, The (1995)|Twelve Monkeys (1995)|Dead Man Walking (1995)|Usual Suspects, The (1995)
Mighty Aphrodite (1995)|Postman, The (1994)|Mr. Holland's Opus (1995)|From Dusk Till Dawn (1996)|Taxi Driver (1976)|Apollo 13 (1995)
Braveheart (1995)|Batman Forever (1995)|Crimson Tide (1995)|Desperado (1995)|Die Hard: With a Vengeance (1995)|Living in Oblivion (1995)
Before Sunrise (1995)|Star Wars: Episode IV - A New Hope (1977)|Star Wars: Episode V - The Empire Strikes Back (1980)|Legends of the Fall (1994)
Natural Born Killers (1994)|Pulp Fiction (1994)|Quiz Show (1994)|Three Colors: Red (1994)|Shawshank Redemption, The (1994)|Speed (1994)
What's Eating Gilbert Grape (1993)|While You Were Sleeping (1995)|Ace Ventura: Pet Detective (1994)|Clear and Present Danger (1994)
Client, The (1994)|Forrest Gump (1994)|Four Weddings and a Funeral (1994)|Lion King, The (1994)|Mask, The (1994)|True Lies (1994)
Addams Family Values (1993)|Dazed and Confused (1993)|Fugitive, The (1993)|In the Line of Fire (1993)|Jurassic Park (1993)|Philadelphia (1993)
Schindler's List (1993)|Blade Runner (1982)|Nightmare Before Christmas, The (1993)|Terminator 2: Judgment Day (1991)|Dances with Wolves (1990)
Silence of the Lambs, The (1991)|Snow White and the Seven Dwarfs (1937)|Beauty and the Beast (1991)|Fargo (1996)|Mission: Impossible (1996)
Dr. Strangelove or: How I Learned to Stop Worrying and Love the Bomb (1964)|Godfather, The (1972)|Godfather: Part II, The (1974)|Vertigo (1958)
Rear Window (1954)|North by Northwest (1959)|Casablanca (1942)|Citizen Kane (1941)|2001: A Space Odyssey (1968)|12 Angry Men (1957)|Alien (1979)
Aliens (1986)|Amadeus (1984)|Raging Bull (1980)|Stand by Me (1986)|Back to the Future (1985)|Back to the Future Part II (1989)|Rain Man (1988)
""".replace("\n", "|").strip("|").split("|")  # fmt: skip
CANDIDATES, SAMPLES = 20, 8
"""of a pool; completions of a prompt"""
MANGLED = ("typos", "case", "no tag", "numbers", "cut off")
THOUGHT = (
    "The history leans towards dramas of the nineties with a strong lead, so films close to that should come first. Comedies and"
    " films for children are further away. Of those left I compare director, cast and year, and put what is like none last."
)
SLOW = """
import time
def computes(data_source, solution_str, ground_truth, extra_info=None):
    until = time.process_time() + 0.005
    while time.process_time() < until:
        pass
    return 0.0
def waits(data_source, solution_str, ground_truth, extra_info=None):
    time.sleep(0.005)
    return 0.0
"""

Call = tuple[str, str, dict[str, Any]]
"""data source, response, ground truth"""


def mangle(response: str, way: str, rng: random.Random) -> str:
    """`response` spoilt in one way."""
    head, _, answer = response.partition("<answer>")
    lines = answer.removesuffix("</answer>").split("\n")
    if way == "typos":  # in one of three lines
        places = [rng.randrange(1, max(2, len(line) - 8)) for line in lines]
        lines = [
            line[:place] + rng.choice("aeinrst") + line[place + 1 :] if rng.random() < 1 / 3 else line
            for line, place in zip(lines, places, strict=True)
        ]
    elif way == "case":
        lines = [line.lower() for line in lines]
    elif way == "numbers":
        lines = [f"{place}. {line}" for place, line in enumerate(lines, 1)]
    elif way == "no tag":
        return head + answer.removesuffix("</answer>")
    elif way == "cut off":
        return response[: rng.randrange(len(head), len(response))]
    return f"{head}<answer>" + "\n".join(lines) + "</answer>"


def calls_of(mode: str, prompts: int, rng: random.Random) -> list[Call]:
    """Calls of the reward for `prompts` pools with SAMPLES responses each."""
    calls: list[Call] = []
    for _ in range(prompts):
        pool = rng.sample(TITLES, CANDIDATES)
        truth = {"candidate_text": pool, "gt": rng.choice(pool)}
        for sample in range(SAMPLES):
            named = rng.sample(pool, CANDIDATES if mode == "direct" else 1)
            response = f"{THOUGHT}</think>\n<answer>" + "\n".join(named) + "</answer>"
            if sample % 2:
                response = mangle(response, rng.choice(MANGLED), rng)
            calls.append((f"{mode}_ranking", response, truth))
    return calls


def by_subsequence(data_source: str, response: str, truth: dict[str, Any]) -> float:
    """The score where each line means the candidate with the longest common subsequence."""
    completion = prepend_prefill(response, think=True)
    pool: list[str] = truth["candidate_text"]
    positive = pool.index(truth["gt"])
    blocks = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    form = format_score(completion, think=True) + tags_score(completion, think=True)
    if not blocks:
        return form - 1.0
    named: list[int] = []
    for line in filter(None, map(str.strip, blocks[-1].split("\n"))):
        best = max(range(len(pool)), key=lambda index: pylcs.lcs_sequence_length(line, pool[index]))
        if best not in named:
            named.append(best)
    direct = data_source == "direct_ranking"
    return form + (direct_task_score(named, positive, len(pool)) if direct else iterative_task_score(named, positive))


def ours(data_source: str, response: str, truth: dict[str, Any]) -> float:
    """The score of the built-in reward."""
    return compute_score(data_source, response, truth)["score"]


def seconds_of(score: Callable[..., float], calls: Sequence[Call]) -> float:
    """CPU seconds of all calls."""
    began = time.process_time()
    for call in calls:
        score(*call)
    return time.process_time() - began


def compare(runs: int) -> None:
    """Print completions a second of both sides."""
    print("| completions | ours, a second | longest common subsequence, a second | ratio |")
    print("| --- | --- | --- | --- |")
    rng = random.Random(0)
    for mode, of in {"direct": ["direct"], "iterative": ["iterative"], "both": ["direct", "iterative"]}.items():
        sides: dict[Callable[..., float], list[float]] = {ours: [], by_subsequence: []}
        for _ in range(runs):
            calls = [call for one in of for call in calls_of(one, 60, rng)]  # anew: no answer is read twice
            for score, rates in sides.items():
                rates.append(len(calls) / seconds_of(score, calls))
        ratio = statistics.median(a / b for a, b in zip(*sides.values(), strict=True))
        mine, peer = (statistics.median(rates) for rates in sides.values())
        print(f"| {len(calls)} {mode} | {mine:,.0f} | {peer:,.0f} | {ratio:.1f} |", flush=True)


def slow_reward(runs: int) -> None:
    """Print the seconds of a step's generation and rewards, where both take time."""
    prompts = [Prompt([1], "direct_ranking", {}, {}, "direct", AnswerFormat()) for _ in range(32)]
    tokenizer: Any = SimpleNamespace(decode=lambda ids, skip_special_tokens: "text")

    def arriving() -> Iterator[tuple[int, list[Turn]]]:
        for place in range(len(prompts)):
            time.sleep(0.02)  # an engine at work elsewhere
            yield place, [Turn([1], Completion([1, 2], [0.0, 0.0], "stop"))] * SAMPLES

    def step(rewards: RewardPool) -> float:
        timing: dict[str, float] = {}
        sampling = SampledBatch(prompts, arriving(), tokenizer, rewards, policy_version=0)
        sampling.receive(timing)
        sampling.outcomes(timing)
        return sum(timing.values())

    print(f"\n{len(prompts) * SAMPLES} responses, whose generation alone takes {0.02 * len(prompts):.2f} s:")
    print("\n| a reward that for 5 ms | in the driver, s | in two processes, s | ratio |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "slow.py"
        file.write_text(SLOW)
        for name in ("computes", "waits"):
            config = RewardFunctionConfig(str(file), name)
            with closing(RewardPool(config)) as alone, closing(RewardPool(config, 2)) as pool:
                step(pool)  # its processes start
                pairs = [(step(alone), step(pool)) for _ in range(runs)]
            inline, pooled = (statistics.median(side) for side in zip(*pairs, strict=True))
            print(
                f"| {name} | {inline:.2f} | {pooled:.2f} | {statistics.median(a / b for a, b in pairs):.2f} |",
                flush=True,
            )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="alternated, of each side (%(default)s)")
    options = parser.parse_args()
    compare(options.runs)
    slow_reward(options.runs)


if __name__ == "__main__":
    main()
