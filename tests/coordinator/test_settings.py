"""coordinator.toml: the sample is valid, and every mistake is named by its key with a remedy."""

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import pytest

from coordinator.sample import SAMPLE
from coordinator.settings import Settings, load
from edge_agent.runtimes.optimizers import OptimizerSettings
from protocol.errors import ConfigurationError
from protocol.messages import OptimizerSpec
from protocol.records import write_record

MINIMAL = """\
fleet = "demo"
bundle = "bundle"
[rounds]
count = 3
devices = 5
deadline_s = 60
[training]
batch_size = 8
learning_rate = 0.1
local_steps = 5
"""


def read(folder: Path, text: str) -> Settings:
    path = folder / "coordinator.toml"
    path.write_text(text)
    return load(path)


def test_the_sample_is_valid_and_the_defaults_are_those_it_shows(tmp_path: Path) -> None:
    sample = read(tmp_path, SAMPLE)
    minimal = read(tmp_path, MINIMAL)
    assert (sample.broker, sample.server, sample.evaluation, sample.limits) == (
        minimal.broker,
        minimal.server,
        minimal.evaluation,
        minimal.limits,
    )


def keys(settings: type, section: str = "") -> set[str]:
    """Every key of a settings class, with the section of the file it stands in."""
    found: set[str] = set()
    for name, kind in get_type_hints(settings).items():
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            found |= keys(kind, f"{section}.{name}".removeprefix("."))
        else:
            found.add(f"[{section}] {name}")
    return found


def test_the_sample_names_every_key_and_no_other() -> None:
    section, named = "", set[str]()
    for line in SAMPLE.splitlines():
        if line.startswith("["):
            section = line[1 : line.index("]")]
        elif match := re.match(r"(?:# )?([a-z_0-9]+) = ", line):
            named.add(f"[{section}] {match[1]}")
    assert named == keys(Settings)


def test_paths_are_relative_to_the_files_folder(tmp_path: Path) -> None:
    settings = read(tmp_path, MINIMAL + '[evaluation]\ndata = "test.npz"\n')
    assert settings.bundle == str(tmp_path / "bundle")
    assert settings.state == str(tmp_path / "coordinator-state")
    assert settings.evaluation.data == str(tmp_path / "test.npz")
    assert read(tmp_path, MINIMAL.replace('"bundle"', '"/srv/bundle"')).bundle == "/srv/bundle"


def test_the_minimum_is_all_devices_unless_said(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL).rounds.least == 5
    assert read(tmp_path, MINIMAL.replace("devices = 5", "devices = 5\nminimum = 2")).rounds.least == 2


MISTAKES = {
    "fleet: 'No Good' must be": MINIMAL.replace('"demo"', '"No Good"'),
    "colour: unknown key; known here": 'colour = "red"\n' + MINIMAL,
    "rounds.count: missing": MINIMAL.replace("count = 3\n", ""),
    "rounds.count: 0 must be at least 1": MINIMAL.replace("count = 3", "count = 0"),
    "rounds.count: expected int": MINIMAL.replace("count = 3", 'count = "3"'),
    "rounds.minimum: 9 must be from 1 to devices": MINIMAL.replace("count = 3", "count = 3\nminimum = 9"),
    "rounds.over_select: 0.5 must be from 1.0": MINIMAL.replace("count = 3", "count = 3\nover_select = 0.5"),
    "rounds.deadline_s: -1.0 must be": MINIMAL.replace("deadline_s = 60", "deadline_s = -1"),
    "rounds.deadline_s: inf must be": MINIMAL.replace("deadline_s = 60", "deadline_s = inf"),
    "rounds.target_accuracy: 95.0 must be above 0 and at most 1; 0.95": MINIMAL.replace(
        "count = 3", "count = 3\ntarget_accuracy = 95"
    ),
    "rounds.target_accuracy: needs held-out data": MINIMAL.replace("count = 3", "count = 3\ntarget_accuracy = 0.9"),
    "training.local_steps: set exactly one": MINIMAL + "local_epochs = 1\n",
    "training.batch_size: 0 must be": MINIMAL.replace("batch_size = 8", "batch_size = 0"),
    "training.learning_rate: nan must be": MINIMAL.replace("0.1", "nan"),
    "training.schedule: 'linear' is not one of 'constant', 'cosine', 'step'": MINIMAL + 'schedule = "linear"\n',
    "training.decay_factor: 2.0 must be": MINIMAL + "decay_factor = 2.0\n",
    "sparsity.final: 1.0 must be at least 0 and below 1": MINIMAL + "[sparsity]\nfinal = 1.0\n",
    "sparsity.begin_round: 9 is after the last round; the nearest that works is 3": MINIMAL
    + "[sparsity]\nfinal = 0.9\nbegin_round = 9\n",
    "sparsity.end_round: 2 must not come before begin_round (3)": MINIMAL
    + "[sparsity]\nfinal = 0.9\nbegin_round = 3\nend_round = 2\n",
    "sparsity.end_round: the last round is 3 (rounds.count), so that 0.9 would never be reached by round 7; the "
    "nearest that works is 3": MINIMAL + "[sparsity]\nfinal = 0.9\nend_round = 7\n",
    "sparsity.last_refresh: 2 must not come before end_round or begin_round (3)": MINIMAL
    + "[sparsity]\nfinal = 0.9\nend_round = 3\nlast_refresh = 2\n",
    "sparsity.refresh_every: 0 must be at least 1": MINIMAL + "[sparsity]\nrefresh_every = 0\n",
    "sparsity.report_every: -1 must be at least 0": MINIMAL + "[sparsity]\nreport_every = -1\n",
    "sparsity.report_fraction: 0.0 must be above 0": MINIMAL + "[sparsity]\nreport_fraction = 0.0\n",
    "sparsity.distribution: 'even' is": MINIMAL + '[sparsity]\ndistribution = "even"\n',
    "sparsity.report_every: how far adamw": MINIMAL + 'optimizer = {name = "adamw"}\n[sparsity]\nfinal = 0.9\n',
    "training.codec: 'zip' is not a codec; known are": MINIMAL + 'codec = "zip"\n',
    "training.codecs[1]: codec: 'zip' is not a codec": MINIMAL + 'codecs = ["all/float16", "zip"]\n',
    "training.codecs: there is a codec, all/int4, beside them": MINIMAL
    + 'codec = "all/int4"\ncodecs = ["all/float16"]\n',
    "limits.device_bytes_per_day: -1 must be at least 0": MINIMAL + "[limits]\ndevice_bytes_per_day = -1\n",
    "training.optimizer.momentum: 1.5 must be at least 0 and below 1": MINIMAL + "optimizer = {momentum = 1.5}\n",
    "training.optimizer.nesterov: true must come with momentum": MINIMAL + "optimizer = {nesterov = true}\n",
    "training.post_local: counts steps": MINIMAL.replace("local_steps = 5", "local_epochs = 1") + "post_local = 3\n",
    "training.post_local: a budget says": MINIMAL + "post_local = 3\nbudget = {steps = 9, mib = 1}\n",
    "training.budget.steps: give both": MINIMAL + "budget = {steps = 9}\n",
    "training.optimizer.keep_momentum: true is for": MINIMAL + "optimizer = {name = 'qg', keep_momentum = true}\n",
    "server.step: momentum moves": MINIMAL + "optimizer = {name = 'qg'}\n[server]\nstep = 'momentum'\n",
    "training.optimizer.name: 'lion' must be one of": MINIMAL + 'optimizer = {name = "lion"}\n',
    "server.step: 'yogi' is not one of 'add', 'momentum', 'adam'": MINIMAL + '[server]\nstep = "yogi"\n',
    "server.beta2: 1.0 must be": MINIMAL + "[server]\nbeta2 = 1.0\n",
    "server.epsilon: 0.0 must be": MINIMAL + "[server]\nepsilon = 0\n",
    "evaluation.every: 0 must be at least 1": MINIMAL + "[evaluation]\nevery = 0\n",
    "limits.disk_mib: 1 must be at least 16": MINIMAL + "[limits]\ndisk_mib = 1\n",
    "limits.examples: 0 must be": MINIMAL + "[limits]\nexamples = 0\n",
    "broker.port: 70000 must be from": MINIMAL + "[broker]\nport = 70000\n",
    "broker.url: 'https://x' must be mqtts://host:port": MINIMAL + '[broker]\nurl = "https://x"\n',
    "broker.url: mqtt://x is not encrypted and leaves this machine": MINIMAL + '[broker]\nurl = "mqtt://x"\n',
    "broker.host: 0.0.0.0 is open to other machines": MINIMAL + '[broker]\nhost = "0.0.0.0"\nplain = "loopback"\n',
    "broker.plain: 'yes' is not one of 'no', 'loopback', 'trusted-network'": MINIMAL + '[broker]\nplain = "yes"\n',
    "trust.certificate_days: 0.0 must be from 0.0001": MINIMAL + "[trust]\ncertificate_days = 0.0\n",
    "trust.port: -1 must be from": MINIMAL + "[trust]\nport = -1\n",
    "trust.folder: is empty": MINIMAL + '[trust]\nfolder = ""\n',
    "not valid TOML": MINIMAL + "[[[",
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named_by_file_and_key(said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, MISTAKES[said])
    assert str(raised.value).startswith(f"{tmp_path / 'coordinator.toml'}: ")
    assert said in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.toml: cannot be read .* --config"):
        load(tmp_path / "nowhere.toml")


def test_what_a_task_says_of_the_optimiser_is_all_that_a_device_can_set() -> None:
    """The wire's record and the runtimes' are two, because the runtimes know nothing of messages."""
    every = OptimizerSpec(mu=0.9, keep_momentum=False)
    assert write_record(every) == dataclasses.asdict(OptimizerSettings())


def test_a_task_of_an_optimiser_of_before_says_nothing_that_was_not_said_before() -> None:
    assert not {"mu", "keep_momentum"} & set(write_record(OptimizerSpec()))


FOLDS = {
    "an empty bucket": ("[fold]\nbucket = 0", r"fold\.bucket: 0 must be at least 1"),
    "buckets of a mean": ("[fold]\nbucket = 2", r"fold\.bucket: 2 does nothing for the mean"),
    "a memory that never fades": ('[fold]\nrule = "multi-krum"\nmemory = 1.0', r"memory: 1.0 must be .* below 1"),
    "a memory of the median": ('[fold]\nrule = "median"\nmemory = 0.9', r"memory: 0.9 is for the rule multi-krum"),
    "a memory of buckets": ('[fold]\nrule = "multi-krum"\nmemory = 0.9\nbucket = 2', r"a bucket of 2 hides them"),
    "too few buckets for krum": (
        '[fold]\nrule = "krum"\nbucket = 2',
        r"fold\.byzantine: 1 of 5 updates .* at least \(2f \+ 2\) x 2 \+ 1 = 9 updates; the nearest that works is 0",
    ),
    "a rule that is not known": ('[fold]\nrule = "mode"', r"fold\.rule: 'mode' is not one of .*'krum'"),
    "half of all trimmed": ("[fold]\ntrim = 0.5", r"fold\.trim: 0\.5 must be above 0 and below 0\.5.*median"),
    "no norm at all": ("[fold]\nclip = 0.0", r"fold\.clip: 0\.0 must be a finite number above 0"),
    "a norm by a word": ('[fold]\nclip = "mean"', r"fold\.clip: 'mean' is unknown; use \"median\", \"none\""),
    "Krum with too many liars": (
        '[fold]\nrule = "krum"\nbyzantine = 2',
        r"fold\.byzantine: 2 of 5 updates .* at least 2f \+ 3 = 7 updates; the nearest that works is 1",
    ),
    "Krum with too few devices": (
        '[fold]\nrule = "multi-krum"\n[limits]\n',
        r"fold\.byzantine: 1 of 2 updates .* = 5 updates; use fold\.rule = median, or that many updates",
    ),
    "a median of what most did not send": (
        '[fold]\nrule = "median"\n[downlink]\n',
        r"fold\.rule: median goes by each coordinate.*training\.codec topk:0\.1/int8.*all/int8",
    ),
    "noise under a median": (
        '[fold]\nrule = "median"\n[privacy]\nnoise_multiplier = 1.0',
        r"privacy\.noise_multiplier: .* fold\.rule is median",
    ),
    "negative noise": ("[privacy]\nnoise_multiplier = -1.0", r"privacy\.noise_multiplier: -1\.0 .* 0 is for no noise"),
    "a delta of one": ("[privacy]\ndelta = 1.0", r"privacy\.delta: 1\.0 must be above 0 and below 1"),
    "less than the median": ("[limits]\nweight = 0.5", r"limits\.weight: 0\.5 times the median must be at least 1"),
    "fewer than no messages": ("[limits]\ndevice_messages_per_minute = -1", r"device_messages_per_minute: -1"),
}


@pytest.mark.parametrize("case", FOLDS)
def test_what_would_protect_nothing_is_refused_with_what_would(case: str, tmp_path: Path) -> None:
    said, expected = FOLDS[case]
    minimal = MINIMAL
    if "few devices" in case:
        minimal = minimal.replace("devices = 5", "devices = 5\nminimum = 2")
    if "most did not send" in case:
        minimal += 'codec = "topk:0.1/int8"\n'
    with pytest.raises(ConfigurationError, match=expected):
        read(tmp_path, minimal + said)


GOSSIP = {
    "gossip.topology: 'cube' is not known": 'topology = "cube"',
    "gossip.topology: 5 devices make no torus": 'topology = "torus"',
    "gossip.links: there is a topology beside it": 'topology = "ring"\nlinks = "links.txt"',
    "gossip.links: is empty": 'links = ""',
    "gossip.codec: 'zip' is not a codec": 'topology = "ring"\ncodec = "zip"',
    "gossip.codec: mask/float16 needs a mask": 'topology = "ring"\ncodec = "mask/float16"',
    "gossip.gamma: 'best' is unknown": 'topology = "ring"\ngamma = "best"',
    "gossip.gamma: 0.0 must be above 0": 'topology = "ring"\ngamma = 0.0',
    "gossip.exchanges: 0 must be from 1": 'topology = "ring"\nexchanges = 0',
    "gossip.gossip_rounds: 65 must be from 1 to 64": 'topology = "ring"\ngossip_rounds = 65',
    "gossip.minimum: 1 must be from 2": 'topology = "ring"\nminimum = 1',
    "gossip.minimum: 6 is more than rounds.devices (5)": 'topology = "ring"\nminimum = 6',
    "gossip.dead_after_s: 0.5 must be": 'topology = "ring"\ndead_after_s = 0.5',
    "gossip.target: 1.5 must be above 0": 'topology = "ring"\ntarget = 1.5',
    "gossip.topology: is missing beside exchanges = 5": "exchanges = 5",
    "gossip.target: 1 controls nothing, with a first_phase of 9": 'topology = "ring"\nfirst_phase = 9',
    "gossip.first_phase: 0 exchanges are controlled": 'topology = "ring"\ntarget = 0.5',
    "gossip.gossip_rounds: 9 are": 'topology = "ring"\ntarget = 0.5\nfirst_phase = 9\ngossip_rounds = 9',
    "gossip.seed: -1 must be from 0": 'topology = "ring"\nseed = -1',
}


@pytest.mark.parametrize("said", GOSSIP)
def test_a_mistake_of_a_fleet_without_a_hub_is_named_by_its_key(said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read(tmp_path, f"{MINIMAL}[gossip]\n{GOSSIP[said]}\n")
    assert said in str(raised.value)


BESIDE_GOSSIP = {
    "rounds.mode": MINIMAL.replace("devices = 5", 'devices = 5\nmode = "buffered"\nbuffer = 2'),
    "rounds.over_select": MINIMAL.replace("devices = 5", "devices = 5\nover_select = 1.5"),
    "training.local_epochs": MINIMAL.replace("local_steps = 5", "local_epochs = 1"),
    "training.post_local": MINIMAL + "post_local = 2\n",
    "training.budget.steps": MINIMAL + "budget = {steps = 9, mib = 1.0}\n",
    "training.codec": MINIMAL + 'codec = "auto"\n',
    "limits.device_bytes_per_day": MINIMAL + "[limits]\ndevice_bytes_per_day = 1000000\n",
    "server.step": MINIMAL + '[server]\nstep = "adam"\n',
    "fold.rule": MINIMAL + '[fold]\nrule = "median"\n',
    "privacy.noise_multiplier": MINIMAL + "[privacy]\nnoise_multiplier = 1.0\n",
    "sparsity.final": MINIMAL + "[sparsity]\nfinal = 0.5\n",
    "tiers.assign": MINIMAL + '[tiers]\nassign = {pi = "tier-025"}\n',
    "downlink.codec": MINIMAL + '[downlink]\ncodec = "all/int8"\n',
    "distillation.bundle": MINIMAL + '[distillation]\nbundle = "b"\ndata = "d.npz"\nvalidation = "v.npz"\n',
}


@pytest.mark.parametrize("key", BESIDE_GOSSIP)
def test_what_does_not_go_without_a_hub_is_refused_by_its_key_with_what_to_set(key: str, tmp_path: Path) -> None:
    assert not read(tmp_path, BESIDE_GOSSIP[key]).gossip.on
    with pytest.raises(ConfigurationError, match=rf"{re.escape(key)}: .*leave \[gossip\] out"):
        read(tmp_path, f'{BESIDE_GOSSIP[key]}[gossip]\ntopology = "ring"\n')


def test_links_are_read_from_a_file_beside_the_settings_and_its_mistakes_are_named(tmp_path: Path) -> None:
    gossip = read(tmp_path, f'{MINIMAL}[gossip]\nlinks = "links.txt"\n').gossip
    with pytest.raises(ConfigurationError, match=r"gossip\.links: .*links\.txt cannot be read"):
        gossip.links_text()
    (tmp_path / "links.txt").write_text("aa bb\nbb cc dd\n")
    with pytest.raises(ConfigurationError, match=r"gossip\.links: .*line 2 has 3 words"):
        gossip.links_text()
    (tmp_path / "links.txt").write_text("aa bb\nbb cc\n")
    assert gossip.links_text() == "aa bb\nbb cc\n"
