"""How evenly many edges that know little of one another load several clouds, in virtual time.

Answers come at random to edges, each of which hears of a cloud's load once per PING, and last a random time.
`python -m pytest -s` on this file prints the figures of docs/SCALING.md.
"""

import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest

from ecd.edge.fleet import Fleet, Served

MODEL = Served("m", "v", "p", {})
PING_S, ANSWER_S, SECONDS, WARM_S = 2.0, 10.0, 600.0, 30.0
# Sessions per unit of weight that run at a time, on average.
SHARING = 20

Told = Mapping[str, Mapping[str, float]]
Policy = Callable[[Fleet, Told, Mapping[str, float], random.Random], str]


def by_fleet(fleet: Fleet, told: Told, weights: Mapping[str, float], rng: random.Random) -> str:
    chosen = fleet.choose(0, 0.0)
    assert chosen is not None
    fleet.opened(chosen)
    return chosen


def least_told(fleet: Fleet, told: Told, weights: Mapping[str, float], rng: random.Random) -> str:
    return min(weights, key=lambda key: (told[key].get("running", 0) / weights[key], rng.random()))


def at_random(fleet: Fleet, told: Told, weights: Mapping[str, float], rng: random.Random) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


@dataclass
class Simulation:
    weights: dict[str, float]
    edges: int
    policy: Policy
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def run(self) -> float:
        """Sessions per weight of the most loaded cloud over the mean of all, averaged over time."""
        rng, running = self.rng, dict.fromkeys(self.weights, 0)
        fleets = [Fleet(PING_S, rng) for _ in range(self.edges)]
        told: list[dict[str, dict[str, float]]] = [{key: {} for key in running} for _ in fleets]
        events: list[tuple[float, int, str, int]] = []
        for number, fleet in enumerate(fleets):
            for key, weight in self.weights.items():
                fleet.add(key, weight)
                assert fleet.connected(key, MODEL, 1 << 20, 0.0, bound=False) is None
                heapq.heappush(events, (rng.uniform(0, PING_S), 0, key, number))
        rate = SHARING * sum(self.weights.values()) / ANSWER_S
        heapq.heappush(events, (0.0, 1, "", 0))
        summed = samples = 0.0
        while (event := heapq.heappop(events))[0] < SECONDS:
            now, kind, key, number = event
            match kind:
                case 0:
                    told[number][key] = {"running": running[key], "queued": 0, "step_ms": 30.0}
                    fleets[number].told(key, 0.02, told[number][key], 0.0)
                    heapq.heappush(events, (now + PING_S, 0, key, number))
                case 1:
                    edge = rng.randrange(self.edges)
                    chosen = self.policy(fleets[edge], told[edge], self.weights, rng)
                    running[chosen] += 1
                    heapq.heappush(events, (now + rng.expovariate(1 / ANSWER_S), 2, chosen, 0))
                    heapq.heappush(events, (now + rng.expovariate(rate), 1, "", 0))
                    if now > WARM_S:
                        mean = sum(running.values()) / sum(self.weights.values())
                        summed += max(running[each] / self.weights[each] for each in running) / mean
                        samples += 1
                case _:
                    running[key] -= 1
        return summed / samples


@pytest.mark.parametrize(
    ("weights", "edges"),
    [((1, 1), 100), ((1,) * 8, 100), ((1,) * 8, 4), ((1, 1, 2, 4), 100)],
    ids=["2 clouds", "8 clouds", "8 clouds, 4 edges", "weights 1 1 2 4"],
)
def test_the_most_loaded_cloud_has_little_more_than_its_share(weights: tuple[float, ...], edges: int) -> None:
    named = {f"cloud {number}": weight for number, weight in enumerate(weights)}
    ours, least, drawn = (
        Simulation(named, edges, policy).run() for policy in (by_fleet, least_told, at_random)
    )
    print(f"\n{len(weights)} clouds, {edges} edges: {ours:.2f}, least told {least:.2f}, random {drawn:.2f}")
    assert ours < 1.3
    assert ours < drawn
