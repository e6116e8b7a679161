"""Every decoder takes what it was once wrong about, and some thousand new inputs, without a crash or a hang."""

import pytest

from benchmarks.fuzzing.run import CORPUS, Tally, attempt, corpus_of, fuzz, prepare, slug
from benchmarks.fuzzing.target import Target
from benchmarks.fuzzing.targets import TARGETS

NAMES = [target.name for target in TARGETS]
INPUTS, SEED = 400, 7


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_no_input_of_a_fixed_seed_crashes_or_hangs_a_decoder(target: Target) -> None:
    (tally,) = fuzz([target], [int(INPUTS * target.share)], SEED, 1, lambda name, done: None)
    assert [(f.kind, f.said, f.data[:200].hex()) for f in tally.failures] == []
    assert tally.inputs == int(INPUTS * target.share)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_what_is_in_the_corpus_is_taken_or_refused_as_stated(target: Target) -> None:
    ready, tally = prepare(target), Tally()
    assert ready.seeds
    for data in ready.seeds:
        attempt(target, ready, data, tally, traced=True)
    assert [(f.kind, f.said) for f in tally.failures] == []
    assert tally.taken or target.name == "topic"


def test_every_folder_of_the_corpus_is_of_a_target_and_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} <= {slug(name) for name in NAMES}
    assert sum(path.stat().st_size for target in TARGETS for path in corpus_of(target)) < 200_000
